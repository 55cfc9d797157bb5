//! `samclipd cameras`: what is plugged in, how the configuration can name it, what it offers and what can be set.

use std::io::{self, Write};

use crate::capture::{CameraFormat, CameraListing, CameraSize, Control, list_cameras};

/// Prints all cameras.
///
/// # Errors
/// Only if the list cannot be written.
pub fn list(out: &mut dyn Write) -> io::Result<()> {
    let cameras = list_cameras();
    if cameras.is_empty() {
        writeln!(out, "no cameras: /dev has no video device that delivers pictures")?;
    }
    for (at, camera) in cameras.iter().enumerate() {
        if at > 0 {
            writeln!(out)?;
        }
        describe(camera, out)?;
    }
    Ok(())
}

fn describe(camera: &CameraListing, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}  {}", camera.path.display(), camera.card)?;
    if !camera.driver.is_empty() {
        writeln!(out, "  driver {}, at {}", camera.driver, camera.bus)?;
    }
    for name in names(camera) {
        writeln!(out, "  source = \"v4l2://{name}\"")?;
    }
    match &camera.formats {
        Err(error) => writeln!(out, "  {error}")?,
        Ok(all) => formats(all, out)?,
    }
    if !camera.controls.is_empty() {
        writeln!(out, "  controls")?;
    }
    camera.controls.iter().try_for_each(|c| control(c, out))
}

/// What a camera can be called, most stable first.
fn names(camera: &CameraListing) -> Vec<String> {
    let links = camera.links.iter().map(|l| l.display().to_string());
    let serial = camera.serial.iter().map(|s| format!("serial:{s}"));
    let card = Some(&camera.card).filter(|c| !c.is_empty());
    let card = card.map(|c| format!("card:{}", c.split(": ").next().unwrap_or(c)));
    let node = std::iter::once(camera.path.display().to_string());
    serial.chain(links).chain(card).chain(node).collect()
}

fn formats(formats: &[CameraFormat], out: &mut dyn Write) -> io::Result<()> {
    for format in formats.iter().filter(|f| f.supported) {
        writeln!(out, "  {}", format.four_cc)?;
        format.sizes.iter().try_for_each(|s| size(s, out))?;
    }
    let others = formats.iter().filter(|f| !f.supported).map(|f| f.four_cc.as_str());
    let others = others.collect::<Vec<_>>().join(", ");
    if others.is_empty() {
        Ok(())
    } else {
        writeln!(out, "  not read by samclip: {others}")
    }
}

fn size(size: &CameraSize, out: &mut dyn Write) -> io::Result<()> {
    let rates = size
        .rates
        .iter()
        .map(|rate| ((rate * 100.0).round() / 100.0).to_string());
    let rates = rates.collect::<Vec<_>>().join(", ");
    let rates = if rates.is_empty() {
        "rates unknown".into()
    } else {
        format!("{rates} fps")
    };
    writeln!(out, "    {:<12} {rates}", size.size)
}

fn control(control: &Control, out: &mut dyn Write) -> io::Result<()> {
    let value = control.value.map_or("unknown".to_owned(), |v| v.to_string());
    writeln!(
        out,
        "    {:<28} = {value:<8} {}, default {}",
        control.name,
        control.range(),
        control.default
    )
}
