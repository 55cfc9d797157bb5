//! What a driver says of its colours and fields, where that changes what its bytes mean.
//!
//! The kernel's rules for "default" are those of `V4L2_MAP_QUANTIZATION_DEFAULT` and `V4L2_MAP_YCBCR_ENC_DEFAULT`. YCbCr is
//! converted by BT.601 whatever the driver says; the range is followed.

/// The kernel's numbers as a driver gives them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Colour {
    pub(super) space: u32,
    pub(super) encoding: u32,
    pub(super) quantization: u32,
    pub(super) field: u32,
}

const SPACE_SMPTE240M: u32 = 2;
const SPACE_REC709: u32 = 3;
const SPACE_JPEG: u32 = 7;
const SPACE_BT2020: u32 = 10;
const SPACE_DCI_P3: u32 = 12;

const QUANTIZATION_DEFAULT: u32 = 0;
const QUANTIZATION_FULL: u32 = 1;

const ENCODING_DEFAULT: u32 = 0;
const ENCODING_709: u32 = 2;
const ENCODING_XV709: u32 = 4;
const ENCODING_BT2020: u32 = 6;
const ENCODING_BT2020_CONST_LUM: u32 = 7;
const ENCODING_SMPTE240M: u32 = 8;

const FIELD_SEQ_TB: u32 = 5;
const FIELD_SEQ_BT: u32 = 6;
const FIELD_ALTERNATE: u32 = 7;

impl Colour {
    /// Whether YCbCr goes from 0 to 255.
    pub(super) fn full_range(self) -> bool {
        match self.quantization {
            QUANTIZATION_DEFAULT => self.space == SPACE_JPEG,
            quantization => quantization == QUANTIZATION_FULL,
        }
    }

    /// The name of a YCbCr matrix other than BT.601.
    pub(super) fn other_matrix(self) -> Option<&'static str> {
        match (self.encoding, self.space) {
            (ENCODING_709 | ENCODING_XV709, _) | (ENCODING_DEFAULT, SPACE_REC709 | SPACE_DCI_P3) => Some("BT.709"),
            (ENCODING_BT2020 | ENCODING_BT2020_CONST_LUM, _) | (ENCODING_DEFAULT, SPACE_BT2020) => Some("BT.2020"),
            (ENCODING_SMPTE240M, _) | (ENCODING_DEFAULT, SPACE_SMPTE240M) => Some("SMPTE 240M"),
            _ => None,
        }
    }

    /// What is wrong with pictures that are taken for whole ones, by their field order.
    pub(super) fn broken_fields(self) -> Option<&'static str> {
        match self.field {
            FIELD_ALTERNATE => Some("each picture is one field, of half the height"),
            FIELD_SEQ_TB | FIELD_SEQ_BT => Some("each picture is two fields, one above the other"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_the_driver_s_or_that_of_its_colour_space() {
        let full = |space, quantization| {
            let colour = Colour {
                space,
                quantization,
                ..Colour::default()
            };
            colour.full_range()
        };
        // sRGB, which webcams say of their YUYV.
        assert_eq!([0, 1, 2].map(|q| full(8, q)), [false, true, false]);
        assert_eq!([0, 1, 2].map(|q| full(SPACE_JPEG, q)), [true, true, false]);
        assert!(!full(0, 0));
    }

    #[test]
    fn other_matrices_and_divided_pictures_are_named() {
        let colour = |space, encoding, field| Colour {
            space,
            encoding,
            field,
            ..Colour::default()
        };
        let matrix = |space, encoding| colour(space, encoding, 1).other_matrix();
        assert_eq!(matrix(SPACE_REC709, 0), Some("BT.709"));
        assert_eq!(
            [(SPACE_REC709, 1), (8, 0), (0, 0)].map(|(s, e)| matrix(s, e)),
            [None; 3]
        );
        assert_eq!(matrix(8, 6), Some("BT.2020"));
        let broken = |field| colour(8, 0, field).broken_fields();
        // Whole pictures, also woven ones, and those of one field that a driver scales.
        assert_eq!([0, 1, 2, 3, 4, 8, 9].map(broken), [None; 7]);
        for field in [FIELD_SEQ_TB, FIELD_SEQ_BT] {
            assert!(broken(field).unwrap().contains("two fields"));
        }
        assert!(broken(FIELD_ALTERNATE).unwrap().contains("half"));
    }
}
