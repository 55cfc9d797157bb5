//! Weights and pictures by formula: full-size models that no file need hold (`make_goldens.py`, `formula_weights`).
#![allow(unreachable_pub)] // a module of several test programs
#![allow(dead_code, reason = "every test program uses another part")]

use std::io::{Seek, Write};

use samclip::train::weights::{Inventory, Values};

/// Weights by formula (`formula_weights` of the script that made the vectors).
pub fn formula(name: &str, shape: &[usize]) -> Values {
    let seed = u64::from(crc32(name.as_bytes())) << 32;
    let fan_in = if shape.len() > 1 {
        shape[1..].iter().product::<usize>()
    } else {
        400
    };
    let range = (1.0 / (fan_in as f64).sqrt()).max(0.02);
    let norm = ["norm", "neck.1", "neck.3", "ln_"].iter().any(|t| name.contains(t));
    let offset = if shape.len() == 1 && norm && name.ends_with("weight") {
        1.0
    } else {
        0.0
    };
    let factor = if name.contains("gaussian_matrix") { 50.0 } else { 1.0 };
    let value = |i: u64| {
        let mut z = (seed | i).wrapping_add(0x9E37_79B9_7F4A_7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^= z >> 31;
        let unit = (z >> 40) as f64 / f64::from(1 << 24);
        (((unit - 0.5) * 2.0 * range) as f32 + offset) * factor
    };
    let count = shape.iter().product::<usize>() as u64;
    Values {
        shape: shape.to_vec(),
        data: (0..count).map(value).collect(),
    }
}

/// CRC-32 as zlib computes it.
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| {
            if c & 1 == 1 { (c >> 1) ^ 0xEDB8_8320 } else { c >> 1 }
        })
    })
}

/// The picture of the full-size vectors, `[3, 1024, 1024]`, already normalised.
pub fn image() -> Vec<f32> {
    (0..3 * 1024 * 1024)
        .map(|i| {
            let (c, y, x) = (f64::from(i >> 20), f64::from((i >> 10) & 1023), f64::from(i & 1023));
            ((x / 37.0 + c).sin() * (y / 53.0 - c).cos()) as f32
        })
        .collect()
}

/// Every fourth row and column of every `plane_step`th plane of `[planes, side, side]`.
pub fn every_4th(x: &[f32], planes: usize, side: usize, plane_step: usize) -> Vec<f32> {
    let plane = |p: usize| (0..side / 4).flat_map(move |y| (0..side / 4).map(move |c| (p, y * 4, c * 4)));
    let at = |(p, y, c): (usize, usize, usize)| x[(p * side + y) * side + c];
    (0..planes).step_by(plane_step).flat_map(plane).map(at).collect()
}

fn little_endian(values: &Values) -> Vec<u8> {
    values.data.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// Writes a checkpoint by formula as `torch.save(state_dict)` writes it: a zip of a pickle and one file per storage;
/// one tensor is in memory at a time.
pub fn write_pth(file: impl Write + Seek, inventory: &Inventory) {
    let mut zip = zip::ZipWriter::new(file);
    let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    zip.start_file("archive/data.pkl", stored).unwrap();
    zip.write_all(&pickle(inventory)).unwrap();
    zip.start_file("archive/byteorder", stored).unwrap();
    zip.write_all(b"little").unwrap();
    for (key, (name, shape)) in inventory.iter().enumerate() {
        zip.start_file(format!("archive/data/{key}"), stored).unwrap();
        zip.write_all(&little_endian(&formula(name, shape))).unwrap();
    }
    zip.start_file("archive/version", stored).unwrap();
    zip.write_all(b"3\n").unwrap();
    zip.finish().unwrap();
}

/// `OrderedDict` of name → `torch._utils._rebuild_tensor_v2(storage, 0, shape, stride, False, OrderedDict())`, protocol 2.
fn pickle(inventory: &Inventory) -> Vec<u8> {
    let global = |module: &str, name: &str| format!("c{module}\n{name}\n").into_bytes();
    let text = |s: &str| [&b"X"[..], &(s.len() as u32).to_le_bytes(), s.as_bytes()].concat();
    let integer = |n: usize| [&b"J"[..], &(n as i32).to_le_bytes()].concat();
    let tuple = |items: Vec<Vec<u8>>| [&b"("[..], &items.concat(), b"t"].concat();
    let ordered_dict = [global("collections", "OrderedDict"), b")R".to_vec()].concat();
    let mut out = [&b"\x80\x02"[..], &ordered_dict, b"("].concat();
    for (key, (name, shape)) in inventory.iter().enumerate() {
        let count: usize = shape.iter().product();
        let strides = (0..shape.len()).map(|i| integer(shape[i + 1..].iter().product()));
        let storage = tuple(vec![
            text("storage"),
            global("torch", "FloatStorage"),
            text(&key.to_string()),
            text("cpu"),
            integer(count),
        ]);
        out.extend(text(name));
        out.extend(global("torch._utils", "_rebuild_tensor_v2"));
        out.extend(tuple(vec![
            [storage, b"Q".to_vec()].concat(),
            integer(0),
            tuple(shape.iter().map(|&n| integer(n)).collect()),
            tuple(strides.collect()),
            b"\x89".to_vec(),
            ordered_dict.clone(),
        ]));
        out.extend(b"R");
    }
    out.extend(b"u.");
    out
}

/// Writes a checkpoint by formula as `.safetensors`; one tensor is in memory at a time.
pub fn write_safetensors(mut file: impl Write, inventory: &Inventory) {
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for (name, shape) in inventory {
        let end = at + 4 * shape.iter().product::<usize>();
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [at, end]});
        header.insert(name.clone(), entry);
        at = end;
    }
    let header = serde_json::to_vec(&header).unwrap();
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(&header).unwrap();
    for (name, shape) in inventory {
        file.write_all(&little_endian(&formula(name, shape))).unwrap();
    }
}
