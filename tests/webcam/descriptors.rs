//! What the camera says it is: USB descriptors, after the USB Video Class 1.1.

/// Formats by their index.
pub const FORMAT_JPEG: u8 = 1;
const FORMAT_YUYV: u8 = 2;

/// Frame sizes, in the order of their index from 1.
pub const SIZES: [(u16, u16); 3] = [(1280, 720), (640, 480), (320, 240)];

/// Frame intervals in units of 100 ns: 30, 15 and 10 frames per second.
pub const INTERVALS: [u32; 3] = [333_333, 666_666, 1_000_000];

/// Bytes of one bulk transfer of uvcvideo: 32 packets of 512.
pub const PAYLOAD: usize = 16_384;

/// Device descriptor: Linux Foundation, miscellaneous device with interface associations.
pub fn device() -> [u8; 18] {
    [18, 1, 0, 2, 0xef, 2, 1, 64, 0x6b, 0x1d, 0x02, 0x01, 0, 1, 1, 2, 3, 1]
}

/// String descriptors: 0 languages, 1 manufacturer, 2 product, 3 serial number.
pub fn string(index: u8, serial: &str) -> Option<Vec<u8>> {
    let text = match index {
        0 => return Some(vec![4, 3, 9, 4]),
        1 => "samclip",
        2 => "Software Webcam",
        3 => serial,
        _ => return None,
    };
    let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    Some([&[2 + units.len() as u8, 3], &units[..]].concat())
}

fn le2(value: u16) -> [u8; 2] {
    value.to_le_bytes()
}

/// A descriptor with its length in front.
fn part(kind: u8, content: &[&[u8]]) -> Vec<u8> {
    let content = content.concat();
    [&[2 + content.len() as u8, kind], &content[..]].concat()
}

/// A group of class-specific descriptors, whose first one holds the length of all at an offset.
fn group(parts: &[Vec<u8>], offset: usize) -> Vec<u8> {
    let mut all = parts.concat();
    let length = all.len() as u16;
    all[offset..offset + 2].copy_from_slice(&le2(length));
    all
}

/// Frame descriptors of a format, and its colour matching (BT.709 primaries, BT.601 matrix).
fn frames(subtype: u8) -> Vec<u8> {
    let frame = |(index, &(width, height)): (usize, &(u16, u16))| {
        let bytes = u32::from(width) * u32::from(height) * 2;
        let rates = [bytes * 8 * 10, bytes * 8 * 30, bytes, INTERVALS[0]];
        let rates: Vec<u8> = rates.iter().flat_map(|v| v.to_le_bytes()).collect();
        let intervals: Vec<u8> = INTERVALS.iter().flat_map(|i| i.to_le_bytes()).collect();
        let head = [subtype, index as u8 + 1, 0];
        part(
            0x24,
            &[
                &head,
                &le2(width),
                &le2(height),
                &rates,
                &[INTERVALS.len() as u8],
                &intervals,
            ],
        )
    };
    let mut all: Vec<u8> = SIZES.iter().enumerate().flat_map(frame).collect();
    all.extend(part(0x24, &[&[0x0d, 1, 1, 4]]));
    all
}

/// Configuration descriptor with everything below it.
pub fn configuration() -> Vec<u8> {
    let yuy2 = [
        b'Y', b'U', b'Y', b'2', 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71,
    ];
    let control = [
        part(
            0x24,
            &[&[1], &le2(0x0110), &[0, 0], &48_000_000u32.to_le_bytes(), &[1, 1]],
        ),
        // camera terminal 1 → processing unit 2 (brightness, contrast) → output terminal 3
        part(0x24, &[&[2, 1], &le2(0x0201), &[0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0]]),
        part(0x24, &[&[5, 2, 1, 0, 0, 2, 3, 0, 0, 0]]),
        part(0x24, &[&[3, 3], &le2(0x0101), &[0, 2, 0]]),
    ];
    let formats = SIZES.len() as u8;
    let streaming = [
        part(0x24, &[&[1, 2, 0, 0, 0x81, 0, 3, 0, 0, 0, 1, 0, 0]]),
        part(0x24, &[&[6, FORMAT_JPEG, formats, 1, 1, 0, 0, 0, 0]]),
        frames(7),
        part(0x24, &[&[4, FORMAT_YUYV, formats], &yuy2, &[16, 1, 0, 0, 0, 0]]),
        frames(5),
    ];
    let mut all = [
        vec![9, 2, 0, 0, 2, 1, 0, 0x80, 250],
        vec![8, 11, 0, 2, 0x0e, 3, 0, 2],
        vec![9, 4, 0, 0, 0, 0x0e, 1, 0, 2],
        group(&control, 5),
        vec![9, 4, 1, 0, 1, 0x0e, 2, 0, 0],
        group(&streaming, 4),
        // bulk, to the host, 512 bytes
        vec![7, 5, 0x81, 2, 0, 2, 0],
    ]
    .concat();
    let length = all.len() as u16;
    all[2..4].copy_from_slice(&le2(length));
    all
}
