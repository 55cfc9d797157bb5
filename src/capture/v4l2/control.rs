//! Controls of a camera (exposure, gain, focus …): what there is, and setting them by name.
//!
//! Names are those that `v4l2-ctl` shows: lower case, with `_` for everything but letters and digits.
#![allow(unsafe_code)] // ioctl

use std::io;

use v4l::v4l_sys::{v4l2_ext_control, v4l2_ext_controls, v4l2_query_ext_ctrl, v4l2_querymenu};
use v4l::v4l2::vidioc;

use super::super::ControlValue;
use super::device::{Device, call, empty, text};

/// Ask for the control after the one named.
const NEXT: u32 = 0x8000_0000;

const DISABLED: u32 = 0x0001;
const READ_ONLY: u32 = 0x0004;

/// More controls, and more items of one menu, than any driver has.
const MAX_CONTROLS: usize = 512;
const MAX_ITEMS: i64 = 256;

/// A control that can be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Name, as the configuration has it.
    pub name: String,
    /// Least value.
    pub minimum: i64,
    /// Largest value.
    pub maximum: i64,
    /// Value after power-on.
    pub default: i64,
    /// Present value, if it can be read.
    pub value: Option<i64>,
    /// Items of a menu by their values; empty for numbers and switches.
    pub items: Vec<(i64, String)>,
    id: u32,
    wide: bool,
}

/// The kernel's name in the form that files can hold.
fn plain_name(name: &str) -> String {
    let words = name.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty());
    words.collect::<Vec<_>>().join("_").to_lowercase()
}

/// The controls of a device that can be set, in the driver's order.
pub(super) fn controls(device: &Device) -> Vec<Control> {
    let mut found = Vec::new();
    let mut query: v4l2_query_ext_ctrl = empty();
    for _ in 0..MAX_CONTROLS {
        query.id |= NEXT;
        // SAFETY: structure of the request.
        if unsafe { call(device.fd(), vidioc::VIDIOC_QUERY_EXT_CTRL, &mut query) }.is_err() {
            break;
        }
        found.extend(describe(device, &query));
    }
    found
}

fn describe(device: &Device, query: &v4l2_query_ext_ctrl) -> Option<Control> {
    // Integer, switch, menu, 64-bit integer, menu of integers.
    let settable = matches!(query.type_, 1 | 2 | 3 | 5 | 9) && query.flags & (DISABLED | READ_ONLY) == 0;
    if !settable {
        return None;
    }
    let name: Vec<u8> = query.name.iter().map(|&c| c as u8).collect();
    let mut control = Control {
        name: plain_name(&text(&name)),
        minimum: query.minimum,
        maximum: query.maximum,
        default: query.default_value,
        value: None,
        items: Vec::new(),
        id: query.id,
        wide: query.type_ == 5,
    };
    if matches!(query.type_, 3 | 9) {
        let last = query.maximum.min(query.minimum.saturating_add(MAX_ITEMS));
        let item = |index| Some((index, menu_item(device, query.id, index, query.type_ == 9)?));
        control.items = (query.minimum..=last).filter_map(item).collect();
    }
    control.value = control.read(device).ok();
    Some(control)
}

/// Text of one item; menus may have gaps.
fn menu_item(device: &Device, id: u32, index: i64, number: bool) -> Option<String> {
    let mut menu: v4l2_querymenu = empty();
    (menu.id, menu.index) = (id, u32::try_from(index).ok()?);
    // SAFETY: structure of the request.
    unsafe { call(device.fd(), vidioc::VIDIOC_QUERYMENU, &mut menu) }.ok()?;
    let item = menu.__bindgen_anon_1;
    // SAFETY: the driver filled the member of this kind of menu; both are plain numbers.
    Some(unsafe {
        if number {
            item.value.to_string()
        } else {
            text(&item.name)
        }
    })
}

impl Control {
    fn exchange(&self, device: &Device, request: vidioc::_IOC_TYPE, value: i64) -> io::Result<i64> {
        let mut control = v4l2_ext_control { id: self.id, ..empty() };
        if self.wide {
            control.__bindgen_anon_1.value64 = value;
        } else {
            control.__bindgen_anon_1.value =
                i32::try_from(value).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        }
        let mut list = v4l2_ext_controls {
            count: 1,
            controls: &raw mut control,
            ..empty()
        };
        // SAFETY: structure of the request; the one control it points to lives as long.
        unsafe { call(device.fd(), request, &mut list) }?;
        let value = control.__bindgen_anon_1;
        // SAFETY: the member that this control uses.
        Ok(unsafe {
            if self.wide {
                value.value64
            } else {
                i64::from(value.value)
            }
        })
    }

    fn read(&self, device: &Device) -> io::Result<i64> {
        self.exchange(device, vidioc::VIDIOC_G_EXT_CTRLS, 0)
    }

    /// What the control can be, for people.
    #[must_use]
    pub fn range(&self) -> String {
        if self.items.is_empty() {
            return format!("{} to {}", self.minimum, self.maximum);
        }
        let items = self.items.iter().map(|(value, name)| format!("{value} {name:?}"));
        items.collect::<Vec<_>>().join(", ")
    }

    /// The number for a value, if it is within the range or the menu.
    fn number(&self, value: &ControlValue) -> Result<i64, String> {
        let refused = || format!("{} is {value}, expected {}", self.name, self.range());
        match value {
            ControlValue::Number(number) if (self.minimum..=self.maximum).contains(number) => Ok(*number),
            ControlValue::Number(_) => Err(refused()),
            ControlValue::Item(name) => {
                let item = self.items.iter().find(|(_, item)| item.eq_ignore_ascii_case(name));
                item.map(|(value, _)| *value).ok_or_else(refused)
            }
        }
    }
}

/// What is wrong with wanted controls, without setting them.
pub(super) fn faults(there: &[Control], wanted: &[(String, ControlValue)]) -> Vec<String> {
    let fault = |(name, value): &(String, ControlValue)| match there.iter().find(|c| c.name == *name) {
        None => Some(no_such(name, there)),
        Some(control) => control.number(value).err(),
    };
    wanted.iter().filter_map(fault).collect()
}

fn no_such(name: &str, there: &[Control]) -> String {
    let names: Vec<&str> = there.iter().map(|c| c.name.as_str()).collect();
    format!("control {name:?} is not there, the camera has {}", names.join(", "))
}

/// Sets controls; what is wrong with those that cannot be set.
///
/// A control may be locked until another one is set (exposure by automatic exposure), so those that are refused are tried
/// again after the others.
pub(super) fn set(device: &Device, wanted: &[(String, ControlValue)]) -> Vec<String> {
    if wanted.is_empty() {
        return Vec::new();
    }
    let there = controls(device);
    let mut problems = faults(&there, wanted);
    let known = wanted.iter().filter_map(|(name, value)| {
        let control = there.iter().find(|c| c.name == *name)?;
        Some((control, control.number(value).ok()?))
    });
    let mut waiting: Vec<_> = known.collect();
    loop {
        let before = waiting.len();
        let mut refused = Vec::new();
        waiting.retain(|(control, value)| {
            let outcome = control.exchange(device, vidioc::VIDIOC_S_EXT_CTRLS, *value);
            refused.extend(
                outcome
                    .as_ref()
                    .err()
                    .map(|e| format!("{} = {value}: {e}", control.name)),
            );
            outcome.is_err()
        });
        if waiting.is_empty() || waiting.len() == before {
            problems.extend(refused);
            return problems;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control(name: &str, range: (i64, i64), items: &[(i64, &str)]) -> Control {
        Control {
            name: name.into(),
            minimum: range.0,
            maximum: range.1,
            default: range.0,
            value: None,
            items: items.iter().map(|(v, n)| (*v, (*n).to_owned())).collect(),
            id: 1,
            wide: false,
        }
    }

    #[test]
    fn names_are_those_of_v4l2_ctl() {
        assert_eq!(plain_name("Exposure Time, Absolute"), "exposure_time_absolute");
        assert_eq!(plain_name(" White Balance (Auto)"), "white_balance_auto");
    }

    #[test]
    fn what_a_camera_cannot_do_is_said_with_what_it_can() {
        let there = [
            control("gain", (0, 100), &[]),
            control(
                "auto_exposure",
                (0, 3),
                &[(1, "Manual Mode"), (3, "Aperture Priority Mode")],
            ),
        ];
        let number = |name: &str, value| (name.to_owned(), ControlValue::Number(value));
        let item = |name: &str, value: &str| (name.to_owned(), ControlValue::Item(value.into()));
        let good = [number("gain", 100), item("auto_exposure", "manual mode")];
        assert_eq!(faults(&there, &good), Vec::<String>::new());
        assert_eq!(there[1].number(&good[1].1), Ok(1));
        assert_eq!(
            faults(
                &there,
                &[number("gain", 101), item("auto_exposure", "Auto"), number("focus", 1)]
            ),
            [
                "gain is 101, expected 0 to 100",
                "auto_exposure is \"Auto\", expected 1 \"Manual Mode\", 3 \"Aperture Priority Mode\"",
                "control \"focus\" is not there, the camera has gain, auto_exposure",
            ]
        );
    }
}
