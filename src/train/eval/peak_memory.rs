//! What a process needs in memory to run graphs: measured in a child of this program, which does nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::contract::GraphSpec;
use crate::runtime::{Backend, Provider, RuntimeOptions, Values, open_graph};

/// Graphs to run one after another, all open.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Graphs {
    /// ONNX file and the JSON of its inputs and outputs, by turns.
    #[arg(value_name = "FILE SPEC")]
    graphs: Vec<String>,
    /// On ONNX Runtime instead of tract.
    #[arg(long)]
    ort: bool,
}

/// Peak resident size in MiB of a child that opens `graphs`, runs each once and does nothing else; none if the child fails, which is
/// logged, as where this program is not `train`.
#[must_use]
pub fn of_child(graphs: &[(&Path, &GraphSpec)], ort: bool) -> Option<f64> {
    let run = || -> Result<f64> {
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("peak-memory");
        for (path, spec) in graphs {
            command.arg(path).arg(serde_json::to_string(spec)?);
        }
        if ort {
            command.arg("--ort");
        }
        let output = command.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8_lossy(&output.stdout);
        let kib: u64 = said
            .trim()
            .parse()
            .with_context(|| format!("the child said {said:?}"))?;
        Ok(kib as f64 / 1024.0)
    };
    run()
        .inspect_err(|error| tracing::warn!(error = format!("{error:#}"), "peak memory not measured"))
        .ok()
}

/// The child's part: peak resident size of this process in KiB, after every graph was opened and run once on zeros.
///
/// # Errors
/// A graph that cannot be opened or run.
pub fn of_graphs(asked: &Graphs) -> Result<u64> {
    let options = RuntimeOptions {
        backend: if asked.ort { Backend::Ort } else { Backend::Tract },
        provider: Provider::Cpu,
        ..RuntimeOptions::default()
    };
    let mut open = Vec::new();
    for pair in asked.graphs.chunks(2) {
        let [path, spec] = pair else {
            anyhow::bail!("found a graph without its inputs and outputs");
        };
        let spec: GraphSpec = serde_json::from_str(spec).context("inputs and outputs of a graph")?;
        open.push((open_graph(&PathBuf::from(path), &spec, &options)?, spec));
    }
    for (session, spec) in &mut open {
        let inputs: Vec<Vec<f32>> = spec.inputs.iter().map(|input| vec![0.0; input.elements()]).collect();
        let inputs: Vec<Values> = inputs.iter().map(|values| Values::F32(values)).collect();
        session.run(spec, &inputs, &mut |_, _, _| Ok(()))?;
    }
    own()
}

/// Peak resident size of this process so far, KiB.
///
/// # Errors
/// Where `/proc` does not tell.
pub fn own() -> Result<u64> {
    const PATH: &str = "/proc/self/status";
    let status = std::fs::read_to_string(PATH).context(PATH)?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches("kB").trim().parse().ok());
    kib.context("/proc/self/status holds no VmHWM line")
}
