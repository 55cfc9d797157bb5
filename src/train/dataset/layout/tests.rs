//! Small made-up copies of every layout, and what is wrong with broken ones.

use std::path::Path;

use super::super::indexed::tests::palette_png;
use super::super::shard::tests::{grey_png, jpeg};
use super::super::{Dataset, DatasetError, Split, split};
use super::*;

fn write(root: &Path, name: &str, bytes: impl AsRef<[u8]>) {
    let path = root.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn dataset(root: &Path, set: &str) -> Result<Dataset, DatasetError> {
    let mut dataset = Dataset::open(&[format!("{}{set}", root.display())])?;
    dataset.skip_corrupt();
    Ok(dataset)
}

fn error(root: &Path, set: &str) -> String {
    dataset(root, set).unwrap_err().to_string()
}

fn skipped(dataset: &Dataset) -> Vec<String> {
    dataset.skipped().iter().map(ToString::to_string).collect()
}

fn keys(dataset: &Dataset) -> Vec<&str> {
    dataset.samples().iter().map(|s| s.key.as_str()).collect()
}

#[test]
fn class_folders_take_names_from_a_synset_list_beside_them() {
    let root = tempfile::tempdir().unwrap();
    write(
        root.path(),
        "synset_words.txt",
        "n01 tench, Tinca tinca\nn02 sea_lion\n",
    );
    for photo in [
        "val/n01/a.JPEG",
        "val/n01/b.jpg",
        "val/n02/c.png",
        "val/traffic_light/d.jpg",
    ] {
        write(
            root.path(),
            photo,
            if photo.ends_with("png") {
                grey_png(4, 4, 9)
            } else {
                jpeg(4, 4)
            },
        );
    }
    let found = dataset(&root.path().join("val"), "").unwrap();
    let labels: Vec<_> = found.samples().iter().map(|s| s.info.labels[0].as_str()).collect();
    assert_eq!(labels, ["tench", "tench", "sea lion", "traffic light"]);
    assert_eq!((keys(&found)[0], found.skipped().len()), ("n01/a", 0));
    write(root.path(), "synset_words.txt", "n01 tench\nn02\n");
    let message = error(&root.path().join("val"), "");
    assert!(
        message.contains("line 2: found \"n02\", expected a folder and its name"),
        "{message}"
    );
}

#[test]
fn sets_of_class_folders_are_folders_of_them_and_one_collection() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "places/names.txt", "n01 attic\n");
    write(root.path(), "places/train/n01/a.jpg", jpeg(2, 2));
    write(root.path(), "places/val/n01/b.jpg", jpeg(2, 2));
    let places = root.path().join("places");
    for (set, key) in [("@train", "n01/a"), ("@val", "n01/b")] {
        let found = dataset(&places, set).unwrap();
        assert_eq!(keys(&found), [key]);
        let info = &found.samples()[0].info;
        assert_eq!((info.source.as_str(), info.labels[0].as_str()), ("places", "attic"));
    }
    assert!(error(&places, "@test").contains("FOLDER@SET"));
    assert!(error(&places.join("val"), "@train").contains("a set of class folders is a folder of them"));
}

/// Label and class of every photo of three folders under `list`.
fn named_by(list: (&str, &str)) -> Vec<(String, Option<String>)> {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), list.0, list.1);
    for class in ["n01", "n02", "n03"] {
        write(root.path(), &format!("val/{class}/a.jpg"), jpeg(2, 2));
    }
    let found = dataset(&root.path().join("val"), "").unwrap();
    let named = found.samples().iter();
    named
        .map(|s| (s.info.labels[0].clone(), s.info.class.clone()))
        .collect()
}

#[test]
fn folders_stay_classes_of_their_own_where_their_first_names_are_one() {
    let own = |label: &str| (label.to_owned(), None);
    let shared = |label: &str, id: &str| (label.to_owned(), Some(id.to_owned()));
    let list = "n01 maillot\nn02 maillot, tank_suit\nn03 tench\n";
    assert_eq!(
        named_by(("synset_words.txt", list)),
        [own("maillot"), own("tank suit"), own("tench")]
    );
    let list = "n01 Cardigan, Cardigan Welsh corgi\nn02 cardigan\nn03 tench\n";
    let expected = [own("Cardigan Welsh corgi"), own("cardigan"), own("tench")];
    assert_eq!(
        named_by(("synset_words.txt", list)),
        expected,
        "a text tower knows no capitals"
    );
    let list = "n01 crane\nn02 crane\nn03 tench\n";
    let cranes = [shared("crane", "n01"), shared("crane", "n02"), own("tench")];
    assert_eq!(named_by(("synset_words.txt", list)), cranes);
    let list = "n01 missile, rocket\nn02 missile, tench\nn03 tench\n";
    let expected = [own("rocket"), own("missile"), own("tench")];
    assert_eq!(
        named_by(("synset_words.txt", list)),
        expected,
        "the synonym is another folder's name"
    );
    assert_eq!(named_by(("names.txt", "n01 crane\nn02 crane\nn03 tench\n")), cranes);
}

#[test]
fn curated_names_are_asked_before_those_of_the_synsets() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "synset_words.txt", "n01 crane\n");
    write(root.path(), "names.txt", "n01 crane bird\n");
    write(root.path(), "val/n01/a.jpg", jpeg(2, 2));
    let found = dataset(&root.path().join("val"), "").unwrap();
    assert_eq!(found.samples()[0].info.labels, ["crane bird"]);
}

#[test]
fn voc_indices_become_names_and_void_is_unlabelled() {
    let root = tempfile::tempdir().unwrap();
    let depth = png::BitDepth::Eight;
    write(root.path(), "ImageSets/Segmentation/val.txt", "a\nmissing\nsmall\n");
    write(root.path(), "ImageSets/Segmentation/train.txt", "b\n");
    for id in ["a", "b", "small"] {
        write(root.path(), &format!("JPEGImages/{id}.jpg"), jpeg(3, 1));
    }
    write(
        root.path(),
        "SegmentationClass/a.png",
        palette_png(3, 1, depth, &[0, 15, 255]),
    );
    write(
        root.path(),
        "SegmentationObject/a.png",
        palette_png(3, 1, depth, &[0, 1, 255]),
    );
    write(
        root.path(),
        "SegmentationClass/b.png",
        palette_png(3, 1, depth, &[20, 1, 0]),
    );
    write(
        root.path(),
        "SegmentationClass/small.png",
        palette_png(2, 1, depth, &[0, 0]),
    );
    let found = dataset(root.path(), "").unwrap();
    let a = found.get(0).unwrap();
    assert_eq!(a.mask.unwrap().classes, [1, 16, 0]);
    assert_eq!(a.segments.unwrap().ids, [0, 1, 0]);
    assert_eq!(
        (found.names().name(16), a.info.classes),
        (Some("person"), vec!["person".to_owned()])
    );
    assert_eq!(a.info.vocab.len(), 20);
    let reasons = skipped(&found);
    assert!(
        reasons[0].contains("\"missing\"") && reasons[0].contains("JPEGImages"),
        "{reasons:?}"
    );
    assert!(reasons[1].contains("is 2x1, its photo is 3x1"), "{reasons:?}");
    assert_eq!(keys(&dataset(root.path(), "@train").unwrap()), ["b"]);
    let message = error(root.path(), "@test");
    assert!(message.contains("test.txt"), "{message}");
}

#[test]
fn ade20k_has_no_background_and_takes_the_first_synonym() {
    let root = tempfile::tempdir().unwrap();
    let list = "Idx\tRatio\tTrain\tVal\tName\n1\t0.1\t5\t2\twall\n2\t0.1\t5\t2\tbuilding, edifice\n";
    write(root.path(), "objectInfo150.txt", list);
    write(root.path(), "images/validation/a.jpg", jpeg(2, 2));
    write(root.path(), "annotations/validation/a.png", grey_png(2, 2, 2));
    write(root.path(), "images/training/b.jpg", jpeg(2, 2));
    write(root.path(), "annotations/training/b.png", grey_png(2, 2, 0));
    let found = dataset(root.path(), "").unwrap();
    let a = found.get(0).unwrap();
    assert_eq!(
        (a.mask.unwrap().classes, a.info.classes),
        (vec![3; 4], vec!["building".to_owned()])
    );
    let b = dataset(root.path(), "@training").unwrap().get(0).unwrap();
    assert_eq!(b.mask.unwrap().classes, [0; 4]);
    write(root.path(), "objectInfo150.txt", "Idx\tName\n1\twall\n3\tsky\n");
    assert!(error(root.path(), "").contains("line 3: found \"3\\tsky\", expected index 2"));
    std::fs::remove_file(root.path().join("objectInfo150.txt")).unwrap();
    assert!(error(root.path(), "").contains("objectInfo150.txt"));
}

const COCO_LIST: &str = r#"{
    "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 8, "file_name": "b.jpg"}, {"id": 9, "file_name": "gone.jpg"},
               {"id": 10, "file_name": "a.jpg"}, {"id": 11}],
    "annotations": [
        {"image_id": 7, "category_id": 18, "iscrowd": 0, "segmentation": [[0, 0, 2, 0, 2, 2, 0, 2]]},
        {"image_id": 7, "category_id": 3, "iscrowd": 1, "segmentation": {"counts": [6, 2], "size": [2, 4]}},
        {"image_id": 10, "category_id": 3, "iscrowd": 0, "segmentation": {"counts": "42", "size": [4, 2]}}
    ],
    "categories": [{"id": 3, "name": "car"}, {"id": 18, "name": "dog"}]
}"#;

#[test]
fn coco_outlines_become_named_masks_and_instances() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "annotations/instances_val2017.json", COCO_LIST);
    write(root.path(), "val2017/a.jpg", jpeg(4, 2));
    write(root.path(), "val2017/b.jpg", jpeg(4, 2));
    let found = dataset(root.path(), "").unwrap();
    assert_eq!(keys(&found), ["a", "b"]);
    let a = found.get(0).unwrap();
    assert_eq!(a.mask.unwrap().classes, [3, 3, 1, 2, 3, 3, 1, 2]);
    assert_eq!(
        a.segments.unwrap().ids,
        [1, 1, 0, 0, 1, 1, 0, 0],
        "a crowd is no instance"
    );
    assert_eq!(
        (a.info.classes, a.info.vocab),
        (vec!["car".into(), "dog".into()], vec!["car".into(), "dog".into()])
    );
    assert_eq!(
        found.get(1).unwrap().mask.unwrap().classes,
        [1; 8],
        "nothing annotated is background"
    );
    let reasons = skipped(&found);
    assert!(reasons[0].contains("neither file_name nor coco_url"), "{reasons:?}");
    assert!(reasons[1].contains("\"gone\""), "{reasons:?}");
    assert!(
        reasons[2].contains("annotation 0: size is 2x4, its photo is 4x2"),
        "{reasons:?}"
    );
}

#[test]
fn cocos_captions_come_with_its_photos_five_each() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "annotations/instances_val2017.json", COCO_LIST);
    write(root.path(), "val2017/a.jpg", jpeg(4, 2));
    write(root.path(), "val2017/b.jpg", jpeg(4, 2));
    let caption = |id: u64, photo: u64, text: &str| format!(r#"{{"id":{id},"image_id":{photo},"caption":"{text}"}}"#);
    let mut all: Vec<String> = (0..6)
        .map(|i| caption(i, 7, &format!("A dog, said {i} times.\\n")))
        .collect();
    all.insert(2, caption(9, 8, "Nothing at all."));
    let list = "annotations/captions_val2017.json";
    let json = format!(r#"{{"images":[],"annotations":[{}]}}"#, all.join(","));
    write(root.path(), list, &json);
    write(root.path(), "annotations/captions_train2017.json", "not read");
    let found = dataset(root.path(), "").unwrap();
    assert_eq!(keys(&found), ["a", "b"]);
    let [a, b] = [0, 1].map(|i| found.get(i).unwrap());
    assert_eq!(
        a.info.captions,
        [0, 1, 2, 3, 4].map(|i| format!("A dog, said {i} times."))
    );
    assert_eq!(b.info.captions, ["Nothing at all."]);
    assert!(
        a.mask.is_some() && a.info.classes.contains(&"dog".to_owned()),
        "the instances stay"
    );
    write(root.path(), list, &json[..json.len() / 2]);
    let message = error(root.path(), "");
    assert!(message.contains(list) && message.contains("EOF"), "{message}");
}

#[test]
fn karpathys_test_set_of_coco_has_captions_and_no_masks() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "val2014/a.jpg", jpeg(4, 2));
    write(root.path(), "val2014/b.jpg", jpeg(4, 2));
    write(root.path(), "secret.jpg", jpeg(4, 2));
    let image = |name: &str, split: &str| {
        let said = [1, 2, 3, 4, 5, 6]
            .map(|i| format!(r#"{{"raw":" Said {i}. ","tokens":[]}}"#))
            .join(",");
        format!(r#"{{"filepath":"val2014","filename":"{name}","split":"{split}","cocoid":1,"sentences":[{said}]}}"#)
    };
    let images = [
        image("a.jpg", "test"),
        image("b.jpg", "val"),
        image("../secret.jpg", "test"),
    ];
    let list = format!(r#"{{"images":[{}],"dataset":"coco"}}"#, images.join(","));
    write(root.path(), "dataset_coco.json", list);
    let found = dataset(root.path(), "@test").unwrap();
    assert_eq!(keys(&found), ["a"], "a list must not reach outside");
    let a = found.get(0).unwrap();
    assert_eq!(a.info.captions, [1, 2, 3, 4, 5].map(|i| format!("Said {i}.")));
    assert_eq!((a.mask, a.info.source.as_str()), (None, "coco"));
    assert_eq!(keys(&dataset(root.path(), "@val").unwrap()), ["b"]);
    assert!(error(root.path(), "@restval").contains("holds no sample"));
    write(root.path(), "annotations/instances_val2017.json", COCO_LIST);
    assert_eq!(
        keys(&dataset(root.path(), "@test").unwrap()),
        ["a"],
        "beside the instances too"
    );
}

#[test]
fn a_damaged_list_is_one_error_with_its_place() {
    let root = tempfile::tempdir().unwrap();
    let list = "annotations/instances_val2017.json";
    write(root.path(), "val2017/a.jpg", jpeg(4, 2));
    for (damaged, expected) in [
        (&COCO_LIST[..COCO_LIST.len() / 2], "EOF"),
        (
            &COCO_LIST.replace(r#""id": 18"#, r#""id": 19"#),
            "annotation of category 18, which has no name",
        ),
        (
            &COCO_LIST.replace(r#""counts": [6, 2]"#, r#""counts": [-6, 2]"#),
            "segmentation: expected polygons",
        ),
    ] {
        write(root.path(), list, damaged);
        let message = error(root.path(), "");
        assert!(message.contains(list) && message.contains(expected), "{message}");
    }
    write(root.path(), list, COCO_LIST);
    let message = error(root.path(), "@val2014");
    assert!(
        message.contains("\"val2014\"") && message.contains("found sets: val2017"),
        "{message}"
    );
}

#[test]
fn a_list_cannot_reach_photos_outside_its_folder() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "secret.jpg", jpeg(4, 2));
    let list = COCO_LIST.replace("gone.jpg", "../../secret.jpg");
    write(root.path(), "coco/annotations/instances_val2017.json", list);
    let found = dataset(&root.path().join("coco"), "").unwrap();
    assert!(!keys(&found).contains(&"secret"));
}

#[test]
fn lvis_knows_what_a_photo_lacks_only_where_somebody_looked() {
    let root = tempfile::tempdir().unwrap();
    let list = r#"{
        "images": [{"id": 1, "coco_url": "http://images.cocodataset.org/val2017/a.jpg", "neg_category_ids": [2]},
                   {"id": 2, "coco_url": "http://images.cocodataset.org/val2017/b.jpg", "neg_category_ids": [2],
                    "not_exhaustive_category_ids": [1]}],
        "annotations": [{"image_id": 1, "category_id": 1, "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]]},
                        {"image_id": 2, "category_id": 1, "segmentation": [[0, 0, 1, 0, 1, 1, 0, 1]]}],
        "categories": [{"id": 1, "name": "traffic_light"}, {"id": 2, "name": "zebra"}, {"id": 3, "name": "yacht"}]
    }"#;
    write(root.path(), "lvis_v1_val.json", list);
    write(root.path(), "val2017/a.jpg", jpeg(2, 1));
    write(root.path(), "val2017/b.jpg", jpeg(2, 1));
    let found = dataset(root.path(), "").unwrap();
    let a = found.get(0).unwrap();
    assert_eq!(a.info.vocab, ["traffic light", "zebra"]);
    // Of some names only some things are outlined: the rest of the photo may show more of them.
    assert_eq!(found.get(1).unwrap().info.vocab, ["zebra"]);
    assert_eq!(
        (a.mask.unwrap().classes, a.segments.unwrap().ids),
        (vec![2, 1], vec![1, 0])
    );
}

#[test]
fn captions_are_read_in_the_three_published_forms() {
    let token = "a.jpg#0\tA dog runs .\na.jpg#1\tTwo words\nb.jpg#0\tA cat .\n";
    let pipes = "image_name| comment_number| comment\na.jpg| 0| A dog, \"runs\" .\na.jpg| 1| Two words\nb.jpg| 0   A cat\nb.jpg| 1| A cat .\n";
    let commas = "image,caption\na.jpg,\"A dog, runs .\"\na.jpg,Two words\nb.jpg,A cat .\n";
    for (name, list) in [
        ("results_20130124.token", token),
        ("results.csv", pipes),
        ("captions.txt", commas),
    ] {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), name, list);
        write(root.path(), "flickr30k-images/a.jpg", jpeg(2, 2));
        let found = dataset(root.path(), "").unwrap();
        assert_eq!(keys(&found), ["a"], "{name}");
        assert_eq!(found.samples()[0].info.captions[1], "Two words", "{name}");
        assert!(found.samples()[0].info.captions[0].starts_with("A dog"), "{name}");
        assert!(skipped(&found)[0].contains("\"b\""), "{name}");
    }
}

#[test]
fn karpathys_split_chooses_the_photos_and_a_bad_line_is_named() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "results.token", "a.jpg#0\tA dog .\nb.jpg#0\tA cat .\n");
    write(root.path(), "a.jpg", jpeg(2, 2));
    write(root.path(), "b.jpg", jpeg(2, 2));
    let splits = r#"{"images": [{"filename": "a.jpg", "split": "train"}, {"filename": "b.jpg", "split": "test"}]}"#;
    write(root.path(), "dataset_flickr30k.json", splits);
    assert_eq!(keys(&dataset(root.path(), "@test").unwrap()), ["b"]);
    assert!(error(root.path(), "@val").contains("expected one of test, train"));
    write(root.path(), "results.token", "a.jpg#0\tA dog .\nno tab here\n");
    assert!(error(root.path(), "").contains("line 2: found \"no tab here\""));
}

#[test]
fn sa_1b_segments_have_no_names() {
    let root = tempfile::tempdir().unwrap();
    let json = |size: &str| {
        format!(r#"{{"image": {{}}, "annotations": [{{"segmentation": {{"counts": "04", "size": {size}}}}}]}}"#)
    };
    write(root.path(), "sa_1.jpg", jpeg(2, 2));
    write(root.path(), "sa_1.json", json("[2, 2]"));
    write(root.path(), "sa_2.jpg", jpeg(2, 2));
    write(root.path(), "sa_2.json", json("[3, 2]"));
    write(root.path(), "sa_3.jpg", jpeg(2, 2));
    write(root.path(), "sa_3.json", &json("[2, 2]")[..40]);
    write(root.path(), "sa_4.json", json("[2, 2]"));
    let found = dataset(root.path(), "").unwrap();
    assert_eq!(keys(&found), ["sa_1"]);
    let sample = found.get(0).unwrap();
    assert_eq!((sample.segments.unwrap().ids, sample.mask), (vec![1; 4], None));
    let reasons = skipped(&found);
    assert!(
        reasons[0].contains("sa_2.json: annotation 0: size is 2x3, its photo is 2x2"),
        "{reasons:?}"
    );
    assert!(reasons[1].contains("sa_3.json: EOF"), "{reasons:?}");
    assert!(reasons[2].contains("\"sa_4\""), "{reasons:?}");
}

#[test]
fn what_is_learnt_from_is_not_the_set_that_papers_report_on() {
    let of = |folder: &str, purpose| Dataset::open_as(&[folder], None, purpose);
    let keys_of = |folder: &str, purpose| {
        let dataset = of(folder, purpose).unwrap();
        dataset
            .samples()
            .iter()
            .map(|s| s.key.clone())
            .collect::<Vec<_>>()
            .join(" ")
    };
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    for (set, id) in [("train", "learnt"), ("val", "measured")] {
        write(
            root.path(),
            &format!("voc/ImageSets/Segmentation/{set}.txt"),
            format!("{id}\n"),
        );
        write(root.path(), &format!("voc/JPEGImages/{id}.jpg"), jpeg(2, 2));
        let coco = format!(
            r#"{{"images":[{{"id":1,"file_name":"{id}.jpg"}}],"annotations":[],"categories":[{{"id":1,"name":"cat"}}]}}"#
        );
        write(root.path(), &format!("coco/annotations/instances_{set}2017.json"), coco);
        write(root.path(), &format!("flickr/{id}.jpg"), jpeg(2, 2));
    }
    for (set, id) in [("training", "learnt"), ("validation", "measured")] {
        write(root.path(), &format!("ade/images/{set}/{id}.jpg"), jpeg(2, 2));
        std::fs::create_dir_all(root.path().join("ade/annotations").join(set)).unwrap();
    }
    write(root.path(), "ade/objectInfo150.txt", "Idx\tName\n1\twall\n");
    for folder in ["voc", "coco", "ade"] {
        assert_eq!(keys_of(&path(folder), Purpose::Learning), "learnt", "{folder}");
        assert_eq!(keys_of(&path(folder), Purpose::Measuring), "measured", "{folder}");
    }
    assert_eq!(
        keys_of(&format!("{}@val", path("voc")), Purpose::Learning),
        "measured",
        "asked for"
    );
    write(
        root.path(),
        "flickr/captions.txt",
        "image,caption\nlearnt.jpg,a cat\nmeasured.jpg,a dog\n",
    );
    assert_eq!(
        keys_of(&path("flickr"), Purpose::Learning),
        "learnt measured",
        "no sets known"
    );
    let splits = r#"{"images":[{"filename":"learnt.jpg","split":"train"},{"filename":"measured.jpg","split":"test"}]}"#;
    write(root.path(), "flickr/dataset_flickr30k.json", splits);
    assert_eq!(keys_of(&path("flickr"), Purpose::Learning), "learnt");
    std::fs::remove_file(root.path().join("coco/annotations/instances_train2017.json")).unwrap();
    let error = of(&path("coco"), Purpose::Learning).unwrap_err().to_string();
    assert!(
        error.contains("no list of set \"train2017\"") && error.contains("found sets: val2017"),
        "{error}"
    );
}

#[test]
fn a_folder_that_is_nothing_known_says_what_is_known() {
    let root = tempfile::tempdir().unwrap();
    write(root.path(), "notes.txt", "hello");
    let message = error(root.path(), "");
    assert!(
        message.contains("voc (JPEGImages") && message.contains("--layout"),
        "{message}"
    );
    let named = Dataset::open_as(&[root.path().to_str().unwrap()], Some(Layout::Voc), Purpose::Measuring).unwrap_err();
    assert!(named.to_string().contains("val.txt"), "{named}");
    let empty = Dataset::open_as(&[root.path().to_str().unwrap()], Some(Layout::Sa1b), Purpose::Measuring).unwrap_err();
    assert!(empty.to_string().contains("holds no sample"), "{empty}");
}

#[test]
fn a_folder_gives_the_same_split_and_fingerprint_every_time() {
    let root = tempfile::tempdir().unwrap();
    for i in 0..40 {
        write(root.path(), &format!("cat/{i}.jpg"), jpeg(2, 2));
    }
    let (a, b) = (dataset(root.path(), "").unwrap(), dataset(root.path(), "").unwrap());
    let before = a.fingerprint();
    assert_eq!(before, b.fingerprint());
    let validation = a
        .samples()
        .iter()
        .filter(|s| split(&s.key) == Split::Validation)
        .count();
    assert_eq!(a.indices(Split::Validation).len(), validation);
    write(root.path(), "cat/0.jpg", jpeg(90, 90));
    assert_ne!(before, dataset(root.path(), "").unwrap().fingerprint());
}

#[test]
fn a_fingerprint_is_of_words_names_and_segments_too() {
    use crate::train::dataset::shard::tests::{grey_png, tar_of};
    let root = tempfile::tempdir().unwrap();
    let fingerprint = |words: &str, names: &str, segment: u8| {
        let members = [
            ("a.jpg", jpeg(2, 2)),
            ("a.json", words.as_bytes().to_vec()),
            ("a.mask.png", grey_png(2, 2, 1)),
            ("a.seg.png", grey_png(2, 2, segment)),
        ];
        write(root.path(), "a.tar", tar_of(&members));
        write(root.path(), "classes.json", names);
        Dataset::open(&[root.path().join("a.tar").to_str().unwrap()])
            .unwrap()
            .fingerprint()
    };
    let (words, names) = (
        r#"{"vocab":["cat"]}"#,
        r#"{"0":"unlabelled","1":"background","2":"cat"}"#,
    );
    let before = fingerprint(words, names, 1);
    assert_eq!(before, fingerprint(words, names, 1));
    for other in [
        fingerprint(r#"{"vocab":["cat","dog"]}"#, names, 1),
        fingerprint(r#"{"vocab":["cat"],"captions":["a cat"]}"#, names, 1),
        fingerprint(words, &names.replace("cat", "dog"), 1),
        fingerprint(words, names, 2),
    ] {
        assert_ne!(before, other);
    }
}
