//! Shapes as signed distances, so that outline, mask and anti-aliasing come from one function.

use std::f32::consts::PI;

/// A kind of shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    Circle,
    Ellipse,
    Square,
    Rectangle,
    Triangle,
    Diamond,
    Hexagon,
    Star,
    Ring,
    Cross,
}

impl Shape {
    pub(super) const ALL: [Self; 10] = [
        Self::Circle,
        Self::Ellipse,
        Self::Square,
        Self::Rectangle,
        Self::Triangle,
        Self::Diamond,
        Self::Hexagon,
        Self::Star,
        Self::Ring,
        Self::Cross,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Ellipse => "ellipse",
            Self::Square => "square",
            Self::Rectangle => "rectangle",
            Self::Triangle => "triangle",
            Self::Diamond => "diamond",
            Self::Hexagon => "hexagon",
            Self::Star => "star",
            Self::Ring => "ring",
            Self::Cross => "cross",
        }
    }

    /// Largest rotation in radians that keeps the name right: a square on its corner is a diamond.
    pub(super) fn largest_turn(self) -> f32 {
        match self {
            Self::Square | Self::Diamond => 0.25,
            Self::Circle | Self::Ring => 0.0,
            _ => PI,
        }
    }

    /// Distance in pixels from the outline to `(x, y)`, negative inside; close to exact near the outline. The shape lies
    /// around the origin and fits a circle of `radius` pixels.
    pub(super) fn distance(self, x: f32, y: f32, radius: f32) -> f32 {
        let r = radius;
        match self {
            Self::Circle => x.hypot(y) - r,
            Self::Ellipse => {
                let (a, b) = (r, r * 0.55);
                let (first, second) = ((x / a).hypot(y / b), (x / (a * a)).hypot(y / (b * b)));
                if second > 0.0 {
                    first * (first - 1.0) / second
                } else {
                    -b
                }
            }
            Self::Square => rectangle(x, y, r * 0.707, r * 0.707),
            Self::Rectangle => rectangle(x, y, r * 0.894, r * 0.447),
            Self::Triangle => polygon(x, y, r, 3),
            Self::Diamond => {
                let (a, b) = (r * 0.65, r);
                (x.abs() * b + y.abs() * a - a * b) / a.hypot(b)
            }
            Self::Hexagon => polygon(x, y, r, 6),
            Self::Star => star(x, y, r),
            Self::Ring => (x.hypot(y) - r * 0.76).abs() - r * 0.24,
            Self::Cross => rectangle(x, y, r * 0.95, r * 0.3).min(rectangle(x, y, r * 0.3, r * 0.95)),
        }
    }
}

/// Distance from a rectangle with half sides `a` and `b`.
fn rectangle(x: f32, y: f32, a: f32, b: f32) -> f32 {
    let (dx, dy) = (x.abs() - a, y.abs() - b);
    dx.max(0.0).hypot(dy.max(0.0)) + dx.max(dy).min(0.0)
}

/// Distance from the edges of a regular polygon with `sides` corners at `r`, one of them on top.
fn polygon(x: f32, y: f32, r: f32, sides: u8) -> f32 {
    let step = 2.0 * PI / f32::from(sides);
    // angle from the middle of the nearest edge
    let angle = (x.atan2(-y).rem_euclid(step)) - step / 2.0;
    x.hypot(y) * angle.cos() - r * (step / 2.0).cos()
}

/// Distance from the edges of a five-pointed star with tips at `r`.
fn star(x: f32, y: f32, r: f32) -> f32 {
    let half = PI / 5.0;
    let angle = ((x.atan2(-y) + half).rem_euclid(2.0 * half) - half).abs();
    let (along, across) = (x.hypot(y) * angle.cos(), x.hypot(y) * angle.sin());
    let (notch_x, notch_y) = (0.42 * r * half.cos(), 0.42 * r * half.sin());
    let length = (r - notch_x).hypot(notch_y);
    ((along - r) * notch_y + across * (r - notch_x)) / length
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shape_fits_its_circle_and_covers_a_fair_part_of_it() {
        for shape in Shape::ALL {
            let mut inside = 0;
            for y in -60..=60i16 {
                for x in -60..=60i16 {
                    let (x, y) = (f32::from(x), f32::from(y));
                    if shape.distance(x, y, 50.0) <= 0.0 {
                        inside += 1;
                        assert!(x.hypot(y) <= 50.5, "{shape:?} at {x},{y}");
                    }
                }
            }
            let share = f64::from(inside) / (2500.0 * std::f64::consts::PI);
            assert!((0.3..=1.01).contains(&share), "{shape:?} covers {share}");
        }
    }

    #[test]
    fn known_points_lie_on_the_outline() {
        assert!(Shape::Circle.distance(0.0, -9.0, 9.0).abs() < 1e-4);
        assert!(Shape::Triangle.distance(0.0, -9.0, 9.0).abs() < 1e-4);
        assert!(Shape::Triangle.distance(0.0, 4.5, 9.0).abs() < 1e-4);
        assert!(Shape::Star.distance(0.0, -9.0, 9.0).abs() < 1e-4);
        assert!(Shape::Ring.distance(0.0, 0.0, 9.0) > 0.0 && Shape::Star.distance(0.0, 0.0, 9.0) < 0.0);
    }
}
