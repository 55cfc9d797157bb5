SUMMARY = "Text in, masks out, on the camera"
DESCRIPTION = "Daemon that grabs V4L2 frames, runs one merged SAM-CLIP image encoder per frame, answers free-text \
queries and publishes masks over MQTT."
HOMEPAGE = "https://arxiv.org/abs/2310.15308"
SECTION = "multimedia"
LICENSE = "MIT | Apache-2.0"
LIC_FILES_CHKSUM = "\
    file://LICENSE-MIT;md5=61c6f2f552976e7f86ac8040b4acfd01 \
    file://LICENSE-APACHE;md5=3b83ef96387f14655fc854ddc3c6bd57 \
"

# the crates of Cargo.lock: bitbake -c update_crates samclip
require ${BPN}-crates.inc

SRC_URI += "file://run-ptest"

inherit cargo cargo-update-recipe-crates externalsrc features_check ptest systemd useradd

# the source tree that this layer lies in
EXTERNALSRC = "${@os.path.normpath(d.getVar('THISDIR') + '/../../../..')}"
# nothing is written into it
# nooelint: oelint.vars.mispell.unknown
EXTERNALSRC_SYMLINKS = ""

# scarthgap unpacks into WORKDIR
UNPACKDIR ??= "${WORKDIR}"

CARGO_BUILD_FLAGS += "--bin samclipd"
# systemd starts the daemon again, all of it; a thread that is gone would stay away
export CARGO_PROFILE_RELEASE_PANIC = "abort"

# the bindings to V4L2 are of these
COMPATIBLE_HOST = "(aarch64|x86_64).*-linux"
REQUIRED_DISTRO_FEATURES = "systemd"

SYSTEMD_SERVICE:${PN} = "samclipd.service"
# the owner of the image first says which camera and broker
SYSTEMD_AUTO_ENABLE:${PN} ?= "disable"

USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system video; --system render"
USERADD_PARAM:${PN} = "--system --user-group --groups video,render --home-dir ${localstatedir}/lib/samclip --no-create-home \
    --shell /sbin/nologin samclip"

# The class would install the library's .rlib as well.
do_install() {
    install -D -m 0755 "${B}/target/${CARGO_TARGET_SUBDIR}/samclipd" "${D}${bindir}/samclipd"
    install -D -m 0644 "${S}/systemd/samclipd.toml" "${D}${sysconfdir}/samclip/samclipd.toml"
    install -D -m 0644 "${S}/systemd/samclipd.service" "${D}${systemd_system_unitdir}/samclipd.service"
    install -D -m 0644 "${S}/systemd/70-samclip.rules" "${D}${nonarch_base_libdir}/udev/rules.d/70-samclip.rules"
    install -D -m 0644 "${S}/systemd/org.samclip.Daemon1.conf" "${D}${datadir}/dbus-1/system.d/org.samclip.Daemon1.conf"
    install -D -m 0644 "${S}/systemd/org.samclip.Daemon1.service" "${D}${datadir}/dbus-1/system-services/org.samclip.Daemon1.service"
    install -D -m 0644 "${S}/dbus/org.samclip.Daemon1.xml" "${D}${datadir}/dbus-1/interfaces/org.samclip.Daemon1.xml"
    install -d "${D}${datadir}/samclip/schemas"
    install -m 0644 "${S}"/src/message/schemas/*.json "${D}${datadir}/samclip/schemas/"
    install -D -m 0644 "${S}/systemd/org.samclip.policy" "${D}${datadir}/polkit-1/actions/org.samclip.policy"
}

do_install_ptest() {
    install -D -m 0755 "${UNPACKDIR}/run-ptest" "${D}${PTEST_PATH}/run-ptest"
}

# without polkit, root and the group samclip may change queries
FILES:${PN} += "${datadir}/dbus-1 ${datadir}/polkit-1 ${datadir}/samclip/schemas"

CONFFILES:${PN} = "${sysconfdir}/samclip/samclipd.toml"

RDEPENDS:${PN}-ptest += "samclip-model-nano"
RRECOMMENDS:${PN} += "ca-certificates samclip-model-nano"
