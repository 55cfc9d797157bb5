SUMMARY = "Merged SAM-CLIP model for samclipd, small enough for two CPU cores"
DESCRIPTION = "The model bundle nano. For research and evaluation: its manifest lists the terms of the pictures it was \
trained on."
HOMEPAGE = "https://arxiv.org/abs/2310.15308"
SECTION = "multimedia"
LICENSE = "LicenseRef-samclip-model-nano"
NO_GENERIC_LICENSE[LicenseRef-samclip-model-nano] = "models/nano/MODEL_CARD.md"
LIC_FILES_CHKSUM = "file://models/nano/manifest.toml;beginline=1;endline=2;md5=490e86b20d2092eb7d5b0b45d844a028"

# the source tree alone
SRC_URI = ""

inherit allarch externalsrc

# the source tree that this layer lies in
EXTERNALSRC = "${@os.path.normpath(d.getVar('THISDIR') + '/../../../..')}"
# nothing is written into it
# nooelint: oelint.vars.mispell.unknown
EXTERNALSRC_SYMLINKS = ""

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -d "${D}${datadir}/samclip/models/nano"
    for file in manifest.toml merges.txt MODEL_CARD.md; do
        install -m 0644 "${S}/models/nano/$file" "${D}${datadir}/samclip/models/nano/"
    done
    for file in "${S}"/models/nano/*.onnx; do
        install -m 0644 "$file" "${D}${datadir}/samclip/models/nano/"
    done
}

FILES:${PN} += "${datadir}/samclip/models/nano"
