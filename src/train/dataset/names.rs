//! What the class names of different collections mean to each other.
//!
//! Collections name the same thing differently (`pedestrian`, `person`), name wholes and parts (`person`, `hair`), or
//! mix two things in one label (`horse+person`). Training and scoring read names only through this file:
//! [`canonical`] picks the one name, [`overlap`] says which two names may both be right for a pixel, so that neither is
//! a negative for the other.

use super::augment::bounds;
use super::{ClassMask, ClassNames, Photo, Sample};

/// Name found in a collection → the name used here.
const SYNONYMS: &[(&str, &str)] = &[
    ("pedestrian", "person"),
    ("bicyclist", "person"),
    ("people", "person"),
    ("aeroplane", "airplane"),
    ("motorbike", "motorcycle"),
    ("stop sign", "sign"),
    ("swan", "bird"),
    ("sidewalk", "pavement"),
    ("sofa", "couch"),
    ("tvmonitor", "tv"),
    ("handbag", "bag"),
    ("purse", "bag"),
    ("pumps", "shoes"),
    ("heels", "shoes"),
    ("flats", "shoes"),
    ("loafers", "shoes"),
    ("wedges", "shoes"),
    ("sneakers", "shoes"),
    ("sunglasses", "glasses"),
    ("tights", "stockings"),
];

/// Canonical names that stand in front of others and have an outline of their own.
pub const THINGS: [&str; 20] = [
    "person",
    "horse",
    "cow",
    "sheep",
    "bird",
    "dog",
    "cat",
    "airplane",
    "car",
    "bicycle",
    "boat",
    "elephant",
    "zebra",
    "giraffe",
    "bear",
    "motorcycle",
    "bus",
    "train",
    "truck",
    "camel",
];

/// Canonical name → other words for the same thing that people ask with, the farthest from it first. A word belongs to one name only:
/// a text tower that is told two things about a word learns neither.
const ALSO_CALLED: &[(&str, &[&str])] = &[
    ("person", &["pedestrian", "people", "human", "somebody"]),
    ("car", &["automobile", "cars", "vehicle"]),
    ("building", &["house", "buildings", "facade"]),
    ("road", &["street", "roadway"]),
    ("pavement", &["sidewalk", "footpath"]),
    ("vegetation", &["trees", "plants", "bushes", "greenery"]),
    ("grass", &["lawn", "meadow"]),
    ("window", &["windows"]),
    ("door", &["doorway", "doors"]),
    ("horse", &["pony", "horses"]),
    ("cow", &["cows", "cattle"]),
    ("sheep", &["lamb"]),
    ("bird", &["birds"]),
    ("dog", &["dogs", "puppy"]),
    ("cat", &["cats", "kitten"]),
    ("airplane", &["aeroplane", "plane", "aircraft"]),
    ("bicycle", &["bike", "bicycles"]),
    ("motorcycle", &["motorbike"]),
    ("boat", &["boats", "ship"]),
    ("flower", &["flowers"]),
    ("mountain", &["mountains", "hill"]),
    ("shoes", &["footwear", "sneakers"]),
    ("bag", &["handbag", "purse"]),
    ("glasses", &["sunglasses", "spectacles"]),
    ("pants", &["trousers"]),
    ("couch", &["sofa"]),
    ("tv", &["television"]),
    ("truck", &["lorry"]),
    ("face", &["faces"]),
];

/// The words for a canonical name: the name itself first, then what people also say.
pub fn spoken(name: &str) -> impl Iterator<Item = &str> {
    let others = ALSO_CALLED.iter().find(|(known, _)| *known == name);
    std::iter::once(name).chain(others.into_iter().flat_map(|(_, words)| words.iter().copied()))
}

/// A whole and its parts, which may be labelled instead of it inside its outline.
const PARTS: &[(&str, &[&str])] = &[
    ("person", PERSON_PARTS),
    ("building", &["window", "door"]),
    ("vegetation", &["tree", "grass", "flower", "potted plant"]),
    ("face", &["hair", "skin", "glasses"]),
    ("potted plant", &["flower", "vase"]),
    ("car", &["window"]),
    ("bus", &["window"]),
    ("train", &["window"]),
];

/// Names that one collection uses for what another calls by a wider name; where a collection has both, a pixel is one or the
/// other.
const WIDER: &[(&str, &[&str])] = &[
    ("tree", &["flower"]),
    ("mountain", &["vegetation", "tree", "grass"]),
    ("car", &["truck"]),
    ("road", &["pavement"]),
];

/// Everything that the fashion collection labels on a person.
const PERSON_PARTS: &[&str] = &[
    "face",
    "hair",
    "skin",
    "blouse",
    "shoes",
    "skirt",
    "stockings",
    "vest",
    "dress",
    "jacket",
    "socks",
    "bag",
    "belt",
    "boots",
    "coat",
    "necklace",
    "pants",
    "glasses",
    "hat",
    "shirt",
    "sweater",
    "cape",
    "blazer",
    "leggings",
    "suit",
    "accessories",
    "jeans",
    "wallet",
    "romper",
    "sandals",
    "bracelet",
    "shorts",
    "t-shirt",
    "watch",
    "bodysuit",
    "top",
    "scarf",
    "ring",
    "sweatshirt",
    "gloves",
    "hoodie",
    "jumper",
    "cardigan",
    "bra",
    "earrings",
    "tie",
    "intimate",
    "panties",
    "swimwear",
    "clogs",
    "backpack",
    "umbrella",
];

/// Names that annotators use for the same garment or thing.
const ALIKE: &[&[&str]] = &[
    &["blouse", "shirt", "t-shirt", "top", "vest", "bodysuit"],
    &["sweater", "sweatshirt", "hoodie", "jumper", "cardigan"],
    &["jacket", "coat", "blazer", "suit", "cape", "vest"],
    &["pants", "jeans", "leggings", "stockings", "suit", "shorts"],
    &["shoes", "boots", "sandals", "clogs"],
    &["bag", "wallet", "backpack", "suitcase"],
    &["dress", "skirt", "romper"],
    &[
        "accessories",
        "necklace",
        "bracelet",
        "ring",
        "earrings",
        "watch",
        "belt",
    ],
    &["bra", "intimate", "panties", "swimwear", "bodysuit"],
];

/// The one name for `name`; `None` for the special classes and for labels that mix two things (`horse+person`), whose
/// pixels count as unlabelled.
#[must_use]
pub fn canonical(name: &str) -> Option<&str> {
    if matches!(name, "" | "unlabelled" | "background") || name.contains('+') {
        return None;
    }
    Some(
        SYNONYMS
            .iter()
            .find(|(found, _)| *found == name)
            .map_or(name, |(_, used)| used),
    )
}

/// Whether `table` lists `narrow` under `wide`.
fn lists(table: &[(&str, &[&str])], wide: &str, narrow: &str) -> bool {
    table
        .iter()
        .any(|(name, under)| *name == wide && under.contains(&narrow))
}

/// Whether a pixel of one may also be called the other; both canonical. Symmetric, and true for equal names.
#[must_use]
pub fn overlap(a: &str, b: &str) -> bool {
    let under = |wide, narrow| lists(PARTS, wide, narrow) || lists(WIDER, wide, narrow);
    a == b || under(a, b) || under(b, a) || ALIKE.iter().any(|group| group.contains(&a) && group.contains(&b))
}

/// Whether one of the names is used for what some collections call by the other, wider one (pavement, road), without
/// being a part of it. Symmetric.
#[must_use]
pub fn one_is_wider(a: &str, b: &str) -> bool {
    lists(WIDER, a, b) || lists(WIDER, b, a)
}

/// Name of the fashion collection (`ccp`), whose labelled pixels together are one person.
pub const FASHION: &str = "ccp";

/// The class mask of a fashion photo with all garments, skin and hair as one person.
///
/// Background becomes unlabelled: passers-by are part of it. `None` for photos of other collections, without a mask,
/// or if `names` has no `person`.
#[must_use]
pub fn whole_person(sample: &Sample, names: &ClassNames) -> Option<ClassMask> {
    let (mask, person) = (sample.mask.as_ref()?, names.index("person")?);
    (sample.info.source == FASHION).then(|| {
        let classes = mask
            .classes
            .iter()
            .map(|&class| if class > ClassNames::BACKGROUND { person } else { 0 });
        ClassMask {
            width: mask.width,
            height: mask.height,
            classes: classes.collect(),
        }
    })
}

/// A fashion photo as one person ([`whole_person`]) on ground that is known as far as the box around the person
/// reaches: passers-by seldom stand between somebody's limbs. `person` is all that is annotated then.
#[must_use]
pub fn person_on_ground(sample: &Sample, names: &ClassNames) -> Option<Sample> {
    let mut mask = whole_person(sample, names)?;
    let marked = (0..mask.classes.len()).filter(|&i| mask.classes[i] > ClassNames::BACKGROUND);
    let (low, high) = bounds(marked, mask.width);
    let ground = &sample.mask.as_ref()?.classes;
    for (i, class) in mask.classes.iter_mut().enumerate() {
        let place = [i % mask.width, i / mask.width];
        let inside = (0..2).all(|axis| (low[axis]..high[axis]).contains(&place[axis]));
        if inside && ground[i] == ClassNames::BACKGROUND {
            *class = ClassNames::BACKGROUND;
        }
    }
    let mut sample = sample.clone();
    sample.info.vocab = vec!["person".to_owned()];
    sample.mask = Some(mask);
    Some(sample)
}

/// A photo without a class mask whose labels are one of [`THINGS`] and a finer name for it (`dog`, `pug`), with what can be told of
/// its pixels: the middle third of either side shows the thing, which such photos have in their middle, and the rest
/// is background to the other things. `None` for any other photo, or if `names` lacks the thing.
#[must_use]
pub fn portrait(sample: &Sample, names: &ClassNames) -> Option<Sample> {
    let [thing, _finer] = sample.info.labels.as_slice() else {
        return None;
    };
    let thing = canonical(thing).filter(|thing| THINGS.contains(thing) && sample.mask.is_none())?;
    let class = names.index(thing)?;
    let Photo { width, height, .. } = sample.photo;
    let middle = |place: usize, length: usize| (length / 3..length - length / 3).contains(&place);
    let class_at = |i: usize| match middle(i % width, width) && middle(i / width, height) {
        true => class,
        false => ClassNames::BACKGROUND,
    };
    let mask = ClassMask {
        width,
        height,
        classes: (0..width * height).map(class_at).collect(),
    };
    let others = THINGS.iter().filter(|other| !overlap(other, thing));
    let mut sample = sample.clone();
    sample.info.vocab = others.map(|&other| other.to_owned()).collect();
    sample.mask = Some(mask);
    Some(sample)
}

/// The whole that `part` belongs to and that `annotated` lists too: a collection that annotates both gives every pixel to
/// one of them, so that a pixel of the whole is not one of the part.
#[must_use]
pub fn whole_of<'a>(part: &str, annotated: &'a [String]) -> Option<&'a str> {
    let wholes = PARTS.iter().filter(|(_, parts)| parts.contains(&part));
    wholes
        .filter_map(|(whole, _)| annotated.iter().find(|name| name == whole))
        .map(String::as_str)
        .next()
}

/// Whether the photo is known not to show `name` (canonical): its collection annotates the name, and nothing labelled in
/// it may be called so. In a fashion photo, `person` is never absent.
#[must_use]
pub fn is_absent(sample: &Sample, name: &str) -> bool {
    let annotated = sample.info.vocab.iter().any(|known| canonical(known) == Some(name));
    let labelled = sample.info.classes.iter().chain(&sample.info.labels);
    annotated
        && !labelled
            .filter_map(|known| canonical(known))
            .any(|known| overlap(known, name))
}

#[cfg(test)]
mod tests {
    use super::super::SampleInfo;
    use super::*;

    fn sample(source: &str, classes: &[&str], vocab: &[&str]) -> Sample {
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect();
        let info = SampleInfo {
            source: source.into(),
            classes: words(classes),
            vocab: words(vocab),
            ..SampleInfo::default()
        };
        let mask = ClassMask {
            width: 4,
            height: 1,
            classes: vec![0, 1, 3, 4],
        };
        let photo = Photo {
            width: 4,
            height: 1,
            rgb: vec![0; 12],
        };
        Sample {
            key: "k".into(),
            photo,
            mask: Some(mask),
            segments: None,
            info,
            regions: Vec::new(),
        }
    }

    #[test]
    fn canonical_maps_synonyms_and_drops_mixed_labels() {
        assert_eq!(canonical("pedestrian"), Some("person"));
        assert_eq!(canonical("tree"), Some("tree"));
        assert_eq!(canonical("horse+person"), None);
        assert_eq!(canonical("background"), None);
        assert!(
            SYNONYMS.iter().all(|(_, used)| canonical(used) == Some(*used)),
            "a synonym maps to a synonym"
        );
    }

    #[test]
    fn every_name_in_the_overlap_tables_is_canonical() {
        let parts = PARTS
            .iter()
            .flat_map(|(whole, parts)| parts.iter().chain(std::iter::once(whole)));
        for name in parts.chain(ALIKE.iter().flat_map(|group| group.iter())) {
            assert_eq!(canonical(name), Some(*name));
        }
    }

    #[test]
    fn words_for_a_name_are_its_own() {
        assert_eq!(
            spoken("car").collect::<Vec<_>>(),
            ["car", "automobile", "cars", "vehicle"]
        );
        assert_eq!(spoken("belt").collect::<Vec<_>>(), ["belt"]);
        for (a, words) in ALSO_CALLED {
            assert_eq!(canonical(a), Some(*a));
            for (b, others) in ALSO_CALLED.iter().filter(|(b, _)| a != b) {
                assert!(words.iter().all(|w| w != b && !others.contains(w)), "{a} and {b}");
            }
        }
    }

    #[test]
    fn a_part_has_a_whole_where_the_collection_knows_both() {
        let names = |names: &[&str]| names.iter().map(|&n| n.to_owned()).collect::<Vec<_>>();
        assert_eq!(whole_of("window", &names(&["car", "building"])), Some("building"));
        assert_eq!(whole_of("window", &names(&["sky"])), None);
        assert_eq!(whole_of("building", &names(&["building", "window"])), None);
        assert_eq!(
            whole_of("pavement", &names(&["road", "pavement"])),
            None,
            "it lies beside the road"
        );
    }

    #[test]
    fn wholes_overlap_their_parts_and_not_their_neighbours() {
        assert!(overlap("tree", "vegetation") && overlap("vegetation", "tree") && overlap("car", "car"));
        assert!(overlap("hair", "person") && overlap("jeans", "pants"));
        assert!(overlap("road", "pavement") && one_is_wider("road", "pavement") && one_is_wider("truck", "car"));
        assert!(!one_is_wider("hair", "person") && !one_is_wider("road", "road"));
        assert!(!overlap("hair", "jeans") && !overlap("tree", "grass") && !overlap("window", "door"));
    }

    #[test]
    fn a_fashion_photo_is_one_person_on_unlabelled_ground() {
        let names = ["unlabelled", "background", "person", "hair", "jeans"].map(str::to_owned);
        let names = ClassNames::new(names.to_vec());
        let mask = whole_person(&sample("ccp", &["hair", "jeans"], &["hair", "jeans"]), &names).unwrap();
        assert_eq!(mask.classes, [0, 0, 2, 2]);
        assert_eq!(whole_person(&sample("msrc", &["hair"], &[]), &names), None);
    }

    #[test]
    fn ground_between_the_limbs_is_known_and_the_street_around_is_not() {
        let names = ["unlabelled", "background", "person", "hair", "jeans"].map(str::to_owned);
        let names = ClassNames::new(names.to_vec());
        let mut fashion = sample("ccp", &["hair", "jeans"], &["hair", "jeans"]);
        fashion.mask.as_mut().unwrap().classes = vec![1, 3, 1, 4];
        let found = person_on_ground(&fashion, &names).unwrap();
        assert_eq!(found.mask.unwrap().classes, [0, 2, 1, 2]);
        assert_eq!(found.info.vocab, ["person"]);
        fashion.mask.as_mut().unwrap().classes = vec![3, 0, 4, 1];
        let found = person_on_ground(&fashion, &names).unwrap();
        assert_eq!(found.mask.unwrap().classes, [2, 0, 2, 0], "unlabelled stays so");
        fashion.info.source = "msrc".into();
        assert_eq!(person_on_ground(&fashion, &names), None);
    }

    #[test]
    fn a_portrait_shows_its_thing_in_the_middle_and_no_other() {
        let names = ClassNames::new(["unlabelled", "background", "dog"].map(str::to_owned).to_vec());
        let mut dog = sample("pets", &[], &[]);
        let (width, height) = (6, 3);
        dog.photo = Photo {
            width,
            height,
            rgb: vec![0; 3 * width * height],
        };
        dog.mask = None;
        dog.info.labels = ["dog", "pug"].map(str::to_owned).to_vec();
        let found = portrait(&dog, &names).unwrap();
        let rows: Vec<&[u8]> = found.mask.as_ref().unwrap().classes.chunks(width).collect();
        assert_eq!(rows, [&[1; 6], &[1, 1, 2, 2, 1, 1], &[1; 6]]);
        assert!(is_absent(&found, "person") && is_absent(&found, "cat"));
        assert!(!found.info.vocab.contains(&"dog".to_owned()));
        assert_eq!(portrait(&dog, &ClassNames::default()), None, "no such name");
        let others: [&[&str]; 4] = [&["pug"], &["wolf", "grey wolf"], &["dog", "pug", "sofa"], &[]];
        for labels in others {
            dog.info.labels = labels.iter().map(|&label| label.to_owned()).collect();
            assert_eq!(portrait(&dog, &names), None, "{labels:?}");
        }
        let mut masked = sample("coco", &["dog"], &["dog", "person"]);
        masked.info.labels = ["dog", "pug"].map(str::to_owned).to_vec();
        assert_eq!(portrait(&masked, &names), None, "a mask says more than labels do");
    }

    #[test]
    fn only_annotated_names_can_be_absent() {
        let street = sample(
            "facade",
            &["building", "vegetation"],
            &["building", "vegetation", "car", "window", "tree"],
        );
        assert!(is_absent(&street, "car"));
        assert!(!is_absent(&street, "building") && !is_absent(&street, "window") && !is_absent(&street, "tree"));
        assert!(!is_absent(&street, "dog"), "the collection does not annotate dogs");
        assert!(!is_absent(&sample("ccp", &["hair"], &["hair", "bag"]), "person"));
    }
}
