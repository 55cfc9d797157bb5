//! A new configuration put in force between two frames. Cameras whose source did not change go on without a gap.

use std::sync::Arc;

use tracing::{error, info};

use super::cameras::Feed;
use super::config::{Camera, Config};
use super::gate::Attention;
use super::reload::{Reloaded, takes_commands};
use super::serve::{Service, Watched};
use super::station::{Prepared, Station};

impl Service<'_> {
    /// Puts a new configuration in force.
    pub(super) fn adopt(&mut self, reloaded: Reloaded) {
        let Reloaded {
            config,
            settings,
            prepared,
        } = reloaded;
        let mut stay = Vec::new();
        for camera in std::mem::take(&mut self.cameras) {
            if config.cameras.iter().any(|new| new.id == *camera.station.id()) {
                stay.push(camera);
            } else {
                self.close_camera(camera);
            }
        }
        self.ending.retain(|thread| !thread.is_finished());
        // What was withdrawn goes to the broker that knew it.
        let untold = self.outlet.adopt(&config, settings);
        self.live.set_open(takes_commands(&config));
        for (camera, prepared) in config.cameras.iter().zip(prepared) {
            let started = match stay.iter().position(|old| *old.station.id() == camera.id) {
                None => self.open_camera(camera, &config, prepared),
                Some(index) => self.keep_camera(stay.swap_remove(index), camera, &config, prepared, untold),
            };
            match started {
                Ok(watched) => self.cameras.push(watched),
                Err(error) => error!(camera = %camera.id, %error, "camera not started; restart the daemon"),
            }
        }
        self.config = Arc::new(config);
    }

    fn close_camera(&mut self, camera: Watched) {
        let Watched { station, feed } = camera;
        info!(camera = %station.id(), "camera removed");
        self.view.forget(station.id().as_str());
        station.close(&self.outlet);
        self.expect_nothing(feed.slot());
        self.health.forget(feed.slot());
        self.ending.push(feed.end(&self.latest));
    }

    /// Longest side that the model looks at in a camera's frames, pixels.
    fn side(&self, camera: &Camera) -> usize {
        camera.side.unwrap_or(self.pipeline.manifest().encoder.side)
    }

    /// A camera that was not there before, with its thread.
    pub(super) fn open_camera(&self, camera: &Camera, config: &Config, prepared: Prepared) -> anyhow::Result<Watched> {
        let detect = self.live.camera(camera.id.as_str()).detect;
        self.outlet.show(camera, detect);
        let attention = Arc::new(Attention::new(camera.motion));
        self.view.open(camera.id.as_str(), &attention);
        let side = self.side(camera);
        let mut station = Station::new(camera, side, config, prepared);
        station.detect(detect, &attention, &self.outlet);
        station.say_queries(&self.outlet);
        let feed = Feed::start(camera, side, &self.latest, self.clock, attention, None)?;
        Ok(Watched { station, feed })
    }

    /// A camera that was there before; only another source makes another thread of it. Everything is said again if the
    /// broker is `untold`.
    fn keep_camera(
        &mut self,
        old: Watched,
        camera: &Camera,
        config: &Config,
        prepared: Prepared,
        untold: bool,
    ) -> anyhow::Result<Watched> {
        let Watched { mut station, mut feed } = old;
        let before = station.camera();
        let side = self.side(camera);
        // The side decides which format a camera is asked for.
        let moved = (&before.source, before.fps, &before.controls, self.side(before))
            != (&camera.source, camera.fps, &camera.controls, side);
        station.adopt(camera, side, config, prepared, &self.outlet);
        // Where nothing may be changed any more, what was switched off could not be switched on.
        let detect = self.live.camera(camera.id.as_str()).detect;
        if detect != station.detects() {
            station.detect(detect, feed.attention(), &self.outlet);
        }
        if moved || !detect {
            self.expect_nothing(feed.slot());
        }
        feed.attention().set_rules(camera.motion);
        feed.attention().want_next();
        if moved {
            info!(camera = %camera.id, "camera has another source");
            self.outlet.show(camera, detect);
            station.gone(&self.outlet);
            if !detect {
                // No frame comes that could say so.
                station.idle(&self.outlet);
            }
            let slot = feed.slot();
            feed.intake().count_skipped(self.latest.dropped(slot));
            let (intake, attention) = (Arc::clone(feed.intake()), Arc::clone(feed.attention()));
            let before = Some((feed.end(&self.latest), intake));
            feed = Feed::start(camera, side, &self.latest, self.clock, attention, before)?;
            self.health.move_to(slot, feed.slot());
        }
        if untold {
            station.say_all(&self.outlet);
        }
        Ok(Watched { station, feed })
    }
}
