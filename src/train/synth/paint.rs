//! Colours and textures of drawn scenes.

use rand::{Rng, RngExt as _};

/// Colour names with their RGB values.
pub(super) const COLOURS: [(&str, [f32; 3]); 12] = [
    ("red", [214.0, 32.0, 36.0]),
    ("orange", [244.0, 134.0, 28.0]),
    ("yellow", [246.0, 220.0, 42.0]),
    ("green", [44.0, 156.0, 60.0]),
    ("cyan", [52.0, 202.0, 212.0]),
    ("blue", [36.0, 70.0, 204.0]),
    ("purple", [126.0, 46.0, 162.0]),
    ("pink", [248.0, 146.0, 190.0]),
    ("brown", [122.0, 74.0, 38.0]),
    ("black", [22.0, 22.0, 24.0]),
    ("gray", [128.0, 128.0, 130.0]),
    ("white", [242.0, 242.0, 240.0]),
];

/// A surface pattern; all keep the named colour in the majority.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Texture {
    Plain,
    Striped,
    Dotted,
    Checkered,
    Shaded,
    Speckled,
}

impl Texture {
    pub(super) const ALL: [Self; 6] = [
        Self::Plain,
        Self::Striped,
        Self::Dotted,
        Self::Checkered,
        Self::Shaded,
        Self::Speckled,
    ];

    /// The word in captions; plain surfaces have none.
    pub(super) fn word(self) -> Option<&'static str> {
        match self {
            Self::Plain => None,
            Self::Striped => Some("striped"),
            Self::Dotted => Some("dotted"),
            Self::Checkered => Some("checkered"),
            Self::Shaded => Some("shaded"),
            Self::Speckled => Some("speckled"),
        }
    }
}

/// A texture in two tones of one colour.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint {
    pub(super) colour: usize,
    pub(super) texture: Texture,
    main: [f32; 3],
    second: [f32; 3],
    /// Length of one repeat in pixels.
    period: f32,
    salt: u32,
}

impl Paint {
    /// Draws a paint of the given colour; `extent` is the size in pixels of what it covers.
    pub(super) fn draw(colour: usize, texture: Texture, extent: f32, rng: &mut impl Rng) -> Self {
        let main = COLOURS[colour]
            .1
            .map(|value| (value + rng.random_range(-14.0..14.0)).clamp(0.0, 255.0));
        let light = main.iter().sum::<f32>() > 330.0;
        let towards = if light { 0.0 } else { 255.0 };
        let second = main.map(|value| value + (towards - value) * 0.5);
        let period = (extent * rng.random_range(0.18..0.4)).max(3.0);
        Self {
            colour,
            texture,
            main,
            second,
            period,
            salt: rng.random(),
        }
    }

    /// Colour at `(x, y)`, in pixels in the shape's own turned frame.
    pub(super) fn at(&self, x: f32, y: f32) -> [f32; 3] {
        let (u, v) = (x / self.period, y / self.period);
        let share = match self.texture {
            Texture::Plain => 0.0,
            Texture::Striped => step(u.rem_euclid(1.0) < 0.4),
            Texture::Dotted => step((u.rem_euclid(1.0) - 0.5).hypot(v.rem_euclid(1.0) - 0.5) < 0.3),
            Texture::Checkered => step((u.rem_euclid(1.0) < 0.5) != (v.rem_euclid(1.0) < 0.5)),
            Texture::Shaded => (0.5 + 0.12 * v).clamp(0.0, 1.0),
            Texture::Speckled => step(random(x as i32, y as i32, self.salt) < 0.3),
        };
        std::array::from_fn(|c| self.main[c] + (self.second[c] - self.main[c]) * share)
    }
}

fn step(on: bool) -> f32 {
    f32::from(u8::from(on))
}

/// A number in 0-1 that depends on place and salt only.
pub(super) fn random(x: i32, y: i32, salt: u32) -> f32 {
    let mut hash = x.cast_unsigned().wrapping_mul(0x9e37_79b1) ^ y.cast_unsigned().wrapping_mul(0x85eb_ca77) ^ salt;
    hash = (hash ^ (hash >> 15)).wrapping_mul(0x2c1b_3c6d);
    hash = (hash ^ (hash >> 12)).wrapping_mul(0x297a_2d39);
    ((hash ^ (hash >> 15)) >> 8) as f32 / 16_777_216.0
}

/// Smooth noise in 0-1 with bumps of `period` pixels.
pub(super) fn smooth(x: f32, y: f32, period: f32, salt: u32) -> f32 {
    let (u, v) = (x / period, y / period);
    let (i, j) = (u.floor(), v.floor());
    let (s, t) = (
        (u - i) * (u - i) * (3.0 - 2.0 * (u - i)),
        (v - j) * (v - j) * (3.0 - 2.0 * (v - j)),
    );
    let corner = |di, dj| random(i as i32 + di, j as i32 + dj, salt);
    let (top, bottom) = (
        corner(0, 0) * (1.0 - s) + corner(1, 0) * s,
        corner(0, 1) * (1.0 - s) + corner(1, 1) * s,
    );
    top * (1.0 - t) + bottom * t
}
