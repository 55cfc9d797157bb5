//! Messages out: what goes to which MQTT topic, as bytes. Pure; no socket, clock or file.
//!
//! * [`topic`]: names, quality of service and retain flag of every topic; ids that may enter a topic
//! * [`payload`]: the versioned JSON bodies and the plain words of state topics
//! * [`homeassistant`]: the description of a camera that makes Home Assistant show it
//! * [`onvif`]: frame messages as ONVIF metadata
//! * [`query`]: live queries and other commands, foreign bytes
//! * [`event`]: beginnings, changes and ends of tracked things
//!
//! `schemas/` holds the JSON Schema (draft 2020-12) of every JSON body; the tests validate against it.

pub mod event;
pub mod homeassistant;
pub mod onvif;
pub mod payload;
pub mod query;
pub mod topic;
