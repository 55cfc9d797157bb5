# On Jetson: ONNX Runtime with TensorRT, and the drop-in that opens its devices. meta-tegra sets the override cuda.
# nooelint: oelint.func.specific
do_install:append:cuda() {
    install -D -m 0644 "${S}/systemd/samclipd.service.d/10-jetson.conf" \
        "${D}${systemd_system_unitdir}/samclipd.service.d/10-jetson.conf"
}

# nooelint: oelint.vars.specific
FILES:${PN}:append:cuda = " ${systemd_system_unitdir}/samclipd.service.d"

# nooelint: oelint.vars.specific
RDEPENDS:${PN}:append:cuda = " onnxruntime"
