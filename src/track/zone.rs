//! Zones: named polygons on the frame. A thing is in a zone by the share of its mask inside, not by a corner of its box.

use super::tracker::Shape;
use crate::vision::geometry::FrameSize;
use crate::vision::mask::{BinaryMask, PixelBox};
use crate::vision::polygon;

/// Fewest and most corners.
const CORNERS: (usize, usize) = (3, 256);

/// What the numbers of a polygon mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Units {
    /// Shares of the frame's width and height, 0 to 1; the same for every resolution.
    #[default]
    Relative,
    /// Pixels of the camera's frame, from its top left corner.
    Pixel,
}

/// A polygon that encloses nothing or is no polygon.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ZoneError {
    /// Too few or too many corners.
    #[error("zone of {found} corners found, expected {} to {}", CORNERS.0, CORNERS.1)]
    Corners {
        /// Corners found.
        found: usize,
    },
    /// A coordinate outside the frame, whatever its size.
    #[error("zone corner [{x}, {y}] found, expected {expected}")]
    Corner {
        /// Horizontal coordinate.
        x: f32,
        /// Vertical coordinate.
        y: f32,
        /// What is allowed.
        expected: &'static str,
    },
}

/// A named polygon.
#[derive(Clone, Debug, PartialEq)]
pub struct Zone {
    id: String,
    corners: Vec<[f32; 2]>,
    units: Units,
}

impl Zone {
    /// A checked polygon; it is closed by itself, and where it crosses itself the even-odd rule holds.
    ///
    /// # Errors
    /// [`ZoneError`] for other than 3 to 256 corners, or a corner that no frame has.
    pub fn new(id: &str, corners: Vec<[f32; 2]>, units: Units) -> Result<Self, ZoneError> {
        if !(CORNERS.0..=CORNERS.1).contains(&corners.len()) {
            return Err(ZoneError::Corners { found: corners.len() });
        }
        let (most, expected) = match units {
            Units::Relative => (1.0, "shares of width and height from 0 to 1"),
            Units::Pixel => (65_535.0, "pixels from 0 to 65535"),
        };
        for &[x, y] in &corners {
            if ![x, y].iter().all(|v| (0.0..=most).contains(v)) {
                return Err(ZoneError::Corner { x, y, expected });
            }
        }
        Ok(Self {
            id: id.to_owned(),
            corners,
            units,
        })
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The pixels of a frame whose centres lie inside.
    #[must_use]
    pub fn on_frame(&self, size: FrameSize) -> ZoneOnFrame {
        let (width, height) = (size.width() as f32, size.height() as f32);
        let scale = match self.units {
            Units::Relative => [width, height],
            Units::Pixel => [1.0, 1.0],
        };
        let corners: Vec<[f32; 2]> = self
            .corners
            .iter()
            .map(|c| [c[0] * scale[0], c[1] * scale[1]])
            .collect();
        let mut inside = vec![false; size.pixels()];
        polygon::fill_even_odd(&[&corners], size.width(), &mut inside);
        let mask = BinaryMask::from_pixels(size, inside);
        ZoneOnFrame {
            bounds: mask.bounding_box(),
            mask,
        }
    }
}

/// A zone on frames of one size.
#[derive(Clone, Debug)]
pub struct ZoneOnFrame {
    mask: BinaryMask,
    bounds: Option<PixelBox>,
}

impl ZoneOnFrame {
    /// Share of a thing's mask inside, 0 to 1; 0 on frames of another size.
    #[must_use]
    pub fn share_of(&self, shape: &Shape) -> f32 {
        let Some(bounds) = self.bounds else { return 0.0 };
        let inside = shape.mask.intersection_moved(shape.bounds, &self.mask, bounds, (0, 0));
        inside as f32 / shape.area as f32
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size() -> FrameSize {
        FrameSize::new(40, 21).unwrap()
    }

    fn zone(corners: &[[f32; 2]], units: Units) -> Zone {
        Zone::new("bay", corners.to_vec(), units).unwrap()
    }

    #[test]
    fn a_thing_is_inside_by_its_share_of_pixels() {
        let left = zone(&[[0.0, 0.0], [0.5, 0.0], [0.5, 1.0], [0.0, 1.0]], Units::Relative).on_frame(size());
        assert_eq!(left.mask.area(), 20 * 21);
        let columns = |from: usize, to: usize| {
            let inside = |i: usize| (from..to).contains(&(i % 40));
            Shape::new(&BinaryMask::from_pixels(size(), (0..840).map(inside))).unwrap()
        };
        assert_eq!(left.share_of(&columns(0, 5)), 1.0);
        assert_eq!(left.share_of(&columns(15, 35)), 0.25);
        assert_eq!(left.share_of(&columns(20, 40)), 0.0);
        let other = BinaryMask::from_pixels(FrameSize::new(2, 2).unwrap(), [true; 4]);
        assert_eq!(left.share_of(&Shape::new(&other).unwrap()), 0.0);
    }

    #[test]
    fn pixels_and_shares_mean_the_same_place() {
        let relative = zone(&[[0.25, 0.0], [0.75, 0.0], [0.5, 1.0]], Units::Relative).on_frame(size());
        let pixel = zone(&[[10.0, 0.0], [30.0, 0.0], [20.0, 21.0]], Units::Pixel).on_frame(size());
        assert_eq!(relative.mask, pixel.mask);
        assert!(
            (relative.mask.area() as i64 - 210).abs() < 11,
            "{}",
            relative.mask.area()
        );
    }

    #[test]
    fn a_zone_outside_a_small_frame_holds_nothing() {
        let far = zone(&[[500.0, 500.0], [600.0, 500.0], [550.0, 600.0]], Units::Pixel).on_frame(size());
        let all = Shape::new(&BinaryMask::from_pixels(size(), [true; 840])).unwrap();
        assert_eq!(far.share_of(&all), 0.0);
    }

    #[test]
    fn what_is_no_polygon_of_a_frame_is_refused() {
        let error = |corners: &[[f32; 2]], units| Zone::new("bay", corners.to_vec(), units).unwrap_err().to_string();
        assert_eq!(
            error(&[[0.0, 0.0], [1.0, 1.0]], Units::Relative),
            "zone of 2 corners found, expected 3 to 256"
        );
        assert_eq!(
            error(&[[0.0, 0.0], [1.0, 0.0], [0.5, 40.0]], Units::Relative),
            "zone corner [0.5, 40] found, expected shares of width and height from 0 to 1"
        );
        assert!(error(&[[0.0, 0.0], [f32::NAN, 0.0], [5.0, 40.0]], Units::Pixel).contains("corner [NaN, 0]"));
        assert!(error(&[[0.0, 0.0], [-1.0, 0.0], [5.0, 40.0]], Units::Pixel).contains("corner [-1, 0]"));
    }

    proptest! {
        #[test]
        fn any_polygon_holds_at_most_the_frame(
            corners in prop::collection::vec([0f32..=1.0, 0f32..=1.0], 3..9), width in 1u32..50, height in 1u32..50,
        ) {
            let size = FrameSize::new(width, height).unwrap();
            let on_frame = zone(&corners, Units::Relative).on_frame(size);
            let all = Shape::new(&BinaryMask::from_pixels(size, std::iter::repeat_n(true, size.pixels()))).unwrap();
            prop_assert!((0.0..=1.0).contains(&on_frame.share_of(&all)));
        }
    }
}
