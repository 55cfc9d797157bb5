//! What the class names of different collections mean to each other.
//!
//! Collections name the same thing differently (`pedestrian`, `person`), name wholes and parts (`person`, `hair`), or
//! mix two things in one label (`horse+person`). Training and scoring read names only through this file:
//! [`canonical`] picks the one name, [`overlap`] says which two names may both be right for a pixel, so that neither is
//! a negative for the other.

use super::{ClassMask, ClassNames, Sample};

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

/// A whole and what may be labelled instead of it inside its outline.
const PARTS: &[(&str, &[&str])] = &[
    ("person", PERSON_PARTS),
    ("building", &["window", "door"]),
    ("vegetation", &["tree", "grass", "flower", "potted plant"]),
    ("tree", &["flower"]),
    ("mountain", &["vegetation", "tree", "grass"]),
    ("face", &["hair", "skin", "glasses"]),
    ("potted plant", &["flower", "vase"]),
    ("car", &["window", "truck"]),
    ("bus", &["window"]),
    ("train", &["window"]),
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

/// Whether a pixel of one may also be called the other; both canonical. Symmetric, and true for equal names.
#[must_use]
pub fn overlap(a: &str, b: &str) -> bool {
    let part_of = |part: &str, whole: &str| {
        PARTS
            .iter()
            .any(|(name, parts)| *name == whole && parts.contains(&part))
    };
    a == b || part_of(a, b) || part_of(b, a) || ALIKE.iter().any(|group| group.contains(&a) && group.contains(&b))
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
    use super::super::{Photo, SampleInfo};
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
    }

    #[test]
    fn wholes_overlap_their_parts_and_not_their_neighbours() {
        assert!(overlap("tree", "vegetation") && overlap("vegetation", "tree") && overlap("car", "car"));
        assert!(overlap("hair", "person") && overlap("jeans", "pants"));
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
