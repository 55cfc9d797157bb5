//! Who may change anything: root, the daemon's own user, members of the group `samclip`, and whom polkit allows it.
//!
//! The caller's identity is the bus's word, never the caller's. Without polkit the first three are all there are.

use std::collections::HashMap;
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};
use tracing::debug;
use zbus::Connection;
use zbus::fdo::{self, ConnectionCredentials, DBusProxy};
use zbus::message::{Flags, Header};
use zbus::names::BusName;
use zbus::zvariant::Value;

/// Members of this group may change everything.
const GROUP: &str = "samclip";

/// Longest wait for polkit: for a rule, and for a person who is asked for a password.
const POLKIT: (Duration, Duration) = (Duration::from_secs(20), Duration::from_secs(120));

/// polkit asks the person, if the caller allows it.
const ALLOW_USER_INTERACTION: u32 = 1;

/// What somebody wants to do; ids of `systemd/org.samclip.policy`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Action {
    /// Change what the daemon does.
    Configure,
    /// See what a camera sees.
    Snapshot,
}

impl Action {
    fn id(self) -> &'static str {
        match self {
            Self::Configure => "org.samclip.configure",
            Self::Snapshot => "org.samclip.snapshot",
        }
    }
}

/// Refuses whoever may not do something.
///
/// # Errors
/// [`fdo::Error::AccessDenied`] with what would help.
pub(super) async fn require(action: Action, connection: &Connection, header: &Header<'_>) -> fdo::Result<()> {
    let denied = |why: &str| fdo::Error::AccessDenied(format!("{why}; {}", remedy(action)));
    let Some(sender) = header.sender() else {
        return Err(denied("the caller is unknown"));
    };
    let bus = DBusProxy::new(connection).await?;
    let credentials = bus.get_connection_credentials(BusName::from(sender.clone())).await?;
    let group = Group::from_name(GROUP).ok().flatten().map(|group| group.gid);
    if is_trusted(&credentials, geteuid(), group) {
        return Ok(());
    }
    let interactive = header.primary().flags().contains(Flags::AllowInteractiveAuth);
    let patience = if interactive { POLKIT.1 } else { POLKIT.0 };
    let asked = ask_polkit(action, connection, sender.as_str(), interactive);
    match tokio::time::timeout(patience, asked).await {
        Ok(Ok(true)) => Ok(()),
        Ok(Ok(false)) => Err(denied("polkit does not allow it")),
        Ok(Err(error)) => {
            debug!(%error, "polkit was asked");
            Err(denied("the caller is not allowed to, and polkit cannot be asked"))
        }
        Err(_) => Err(denied("polkit gave no answer")),
    }
}

fn remedy(action: Action) -> String {
    format!(
        "become a member of group {GROUP}, or allow action {} in polkit",
        action.id()
    )
}

/// Whether a caller needs no further permission: `own` is the daemon's user, `group` the one whose members may.
fn is_trusted(credentials: &ConnectionCredentials, own: Uid, group: Option<Gid>) -> bool {
    let Some(uid) = credentials.unix_user_id().map(Uid::from_raw) else {
        return false;
    };
    if uid.is_root() || uid == own {
        return true;
    }
    let Some(group) = group else {
        return false;
    };
    match credentials.unix_group_ids() {
        Some(gids) => gids.contains(&group.as_raw()),
        // Older buses do not say; the system's data base does.
        None => groups_of(uid).contains(&group),
    }
}

fn groups_of(uid: Uid) -> Vec<Gid> {
    let Ok(Some(user)) = User::from_uid(uid) else {
        return Vec::new();
    };
    let name = std::ffi::CString::new(user.name).unwrap_or_default();
    getgrouplist(&name, user.gid).unwrap_or_default()
}

/// polkit's word on an action of a caller.
async fn ask_polkit(action: Action, connection: &Connection, sender: &str, interactive: bool) -> zbus::Result<bool> {
    let subject = ("system-bus-name", HashMap::from([("name", Value::from(sender))]));
    // Details would be shown to the person; polkit takes none from a caller that is not root.
    let details: HashMap<&str, &str> = HashMap::new();
    let flags = if interactive { ALLOW_USER_INTERACTION } else { 0 };
    let reply = connection
        .call_method(
            Some("org.freedesktop.PolicyKit1"),
            "/org/freedesktop/PolicyKit1/Authority",
            Some("org.freedesktop.PolicyKit1.Authority"),
            "CheckAuthorization",
            &(subject, action.id(), details, flags, ""),
        )
        .await?;
    let ((authorized, _challenge, _details),): ((bool, bool, HashMap<String, String>),) = reply.body().deserialize()?;
    Ok(authorized)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(uid: u32) -> ConnectionCredentials {
        ConnectionCredentials::default().set_unix_user_id(uid)
    }

    #[test]
    fn root_the_daemon_s_own_user_and_members_of_the_group_are_trusted() {
        let (own, group) = (Uid::from_raw(3_999_999_990), Some(Gid::from_raw(3_999_999_991)));
        let stranger = 3_999_999_999;
        assert!(is_trusted(&caller(0), own, None));
        assert!(is_trusted(&caller(own.as_raw()), own, None));
        assert!(is_trusted(
            &caller(stranger).add_unix_group_id(3_999_999_991),
            own,
            group
        ));
        for untrusted in [
            ConnectionCredentials::default(),
            caller(stranger),
            caller(stranger).add_unix_group_id(3_999_999_992),
        ] {
            assert!(!is_trusted(&untrusted, own, group), "{untrusted:?}");
        }
        // The group does not exist.
        assert!(!is_trusted(&caller(stranger).add_unix_group_id(0), own, None));
    }

    #[test]
    fn a_user_s_groups_are_those_of_the_system() {
        assert!(groups_of(Uid::from_raw(0)).contains(&Gid::from_raw(0)));
        assert!(groups_of(Uid::from_raw(3_999_999_999)).is_empty());
    }

    #[test]
    fn the_actions_are_those_of_the_policy_file() {
        let policy = include_str!("../../../systemd/org.samclip.policy");
        for action in [Action::Configure, Action::Snapshot] {
            assert!(
                policy.contains(&format!("<action id=\"{}\">", action.id())),
                "{action:?}"
            );
        }
        assert_eq!(policy.matches("<action id=").count(), 2);
    }
}
