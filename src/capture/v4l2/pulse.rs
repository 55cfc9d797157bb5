//! Signs of life of a camera: when it was heard of last, and what is wrong since.

use std::time::Duration;

/// All times are on the monotonic clock.
#[derive(Debug)]
pub(super) struct Pulse {
    /// When the last good frame came, or the camera was opened.
    heard: Duration,
    /// Damage since the last good frame.
    damage: Option<String>,
}

impl Pulse {
    /// A camera that was opened now.
    pub(super) fn new(now: Duration) -> Self {
        Self {
            heard: now,
            damage: None,
        }
    }

    /// A frame is good.
    pub(super) fn good(&mut self, now: Duration) {
        (self.heard, self.damage) = (now, None);
    }

    /// A frame was not looked at: it is taken to be as good as the last one that was.
    pub(super) fn unseen(&mut self, now: Duration) {
        if self.damage.is_none() {
            self.heard = now;
        }
    }

    /// A frame is damaged; whether the one before it was not.
    pub(super) fn damaged(&mut self, damage: String) -> bool {
        self.damage.replace(damage).is_none()
    }

    /// Time without a good frame.
    pub(super) fn silent(&self, now: Duration) -> Duration {
        now.saturating_sub(self.heard)
    }

    /// What is wrong with the frames that came, if any did.
    pub(super) fn take_damage(&mut self) -> Option<String> {
        self.damage.take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_that_nobody_looked_at_do_not_make_up_for_damaged_ones() {
        let at = Duration::from_secs;
        let mut pulse = Pulse::new(at(1));
        pulse.unseen(at(2));
        assert_eq!(pulse.silent(at(3)), at(1));
        assert!(pulse.damaged("cut short".into()) && !pulse.damaged("cut shorter".into()));
        pulse.unseen(at(7));
        assert_eq!(pulse.silent(at(7)), at(5));
        pulse.good(at(8));
        pulse.unseen(at(9));
        assert_eq!((pulse.silent(at(9)), pulse.take_damage()), (at(0), None));
        pulse.damaged("cut short".into());
        assert_eq!(pulse.take_damage().as_deref(), Some("cut short"));
    }
}
