//! A training step here and in PyTorch, alternately in one run: `cargo bench --features train --bench training_step`.
//!
//! The step is forward, backward and AdamW of SAM's image encoder at 256 px: 6 blocks of width 192, global attention, neck of
//! 64 channels, batch 8, mean square of the output as loss, in fp32 and in bf16 (autocast in PyTorch). With `--features train-vulkan`
//! the same step runs on the first GPU too, in fp32 and in fp16 where it has that. PyTorch runs `training_step.py` beside this file if
//! `SAMCLIP_TORCH_PYTHON` names a Python that has torch, with as many threads as this process has.
#![allow(clippy::unwrap_used)] // a panic is how a benchmark fails

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Instant;

use burn_flex::{Flex, FlexDevice};
use samclip::train::initial;
use samclip::train::kernels::Kernels;
use samclip::train::model::{SamConfig, encoder, inventory};
use samclip::train::ops::Ops as _;
use samclip::train::optimizer::{AdamW, AdamWConfig};
use samclip::train::precision::Precision;
use samclip::train::session::{StepLoss, gradients};

const BATCH: usize = 8;
const SIDE: usize = 256;
const ROUNDS: usize = 15;

fn config() -> SamConfig {
    SamConfig {
        image_size: SIDE,
        embed_dim: 192,
        depth: 6,
        num_heads: 3,
        window_size: 0,
        global_attn_indexes: (0..6).collect(),
        out_chans: 64,
        rel_pos: false,
        stem: Vec::new(),
        ..SamConfig::vit_b()
    }
}

/// Steps on `device` in `precision`, one per call; each returns its milliseconds.
fn stepper<B: Kernels>(device: B::Device, precision: Precision) -> impl FnMut() -> f64 {
    let config = config();
    let mut weights = initial::weights(&inventory::sam(&config), 1);
    let pixels: Vec<f32> = (0..BATCH * 3 * SIDE * SIDE).map(|i| (i as f32 * 0.37).sin()).collect();
    let mut optimizer = AdamW::default();
    let encoder_only = |name: &str| f32::from(u8::from(name.starts_with("image_encoder.")));
    move || {
        let started = Instant::now();
        let (_, _, gradients) = gradients::<B>(&weights, &device, precision, encoder_only, |graph| {
            let image = graph.input(pixels.clone(), &[BATCH, 3, SIDE, SIDE]);
            let out = encoder::neck(graph, &config, &encoder::tokens(graph, &config, &image));
            let values: usize = graph.shape(&out).iter().product();
            let flat = graph.reshape(&graph.mul(&out, &out), &[values]);
            StepLoss {
                total: graph.scale(&graph.sum(&flat, 0), 1.0 / values as f32),
                parts: Vec::new(),
            }
        });
        optimizer.step(&AdamWConfig::default(), &mut weights, &gradients, |_| 1e-4);
        1e3 * started.elapsed().as_secs_f64()
    }
}

/// PyTorch in a child: a line in, a step, its milliseconds out.
struct Torch {
    child: Child,
    ask: ChildStdin,
    answer: BufReader<ChildStdout>,
}

impl Torch {
    fn start(precision: Precision) -> Option<Self> {
        let python = std::env::var("SAMCLIP_TORCH_PYTHON").ok()?;
        let threads = std::thread::available_parallelism().unwrap().to_string();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/training_step.py");
        let mut child = Command::new(python)
            .args([script, &threads, &precision.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let (ask, answer) = (
            child.stdin.take().unwrap(),
            BufReader::new(child.stdout.take().unwrap()),
        );
        Some(Self { child, ask, answer })
    }

    fn step(&mut self) -> f64 {
        self.ask.write_all(b"step\n").unwrap();
        let mut line = String::new();
        self.answer.read_line(&mut line).unwrap();
        line.trim().parse().expect("training_step.py answers with milliseconds")
    }

    fn peak_mib(&self) -> f64 {
        peak_mib(self.child.id())
    }
}

impl Drop for Torch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Highest resident memory of a process, MiB.
fn peak_mib(id: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() / 1024.0
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// The same step on the first GPU.
#[cfg(feature = "train-vulkan")]
fn measure_gpu(ours: f64) {
    use samclip::train::device::gpu::{self, Gpu};

    let device = match gpu::open(0) {
        Ok(device) => device,
        Err(error) => return println!("GPU: not measured, {error}"),
    };
    for precision in [Precision::Fp32, Precision::Fp16] {
        if let Err(error) = precision.check::<Gpu>(&device) {
            println!("GPU in {precision}: not measured, {error}");
            continue;
        }
        let mut next = stepper::<Gpu>(device.clone(), precision);
        // The first steps compile kernels.
        (0..3).for_each(|_| _ = next());
        let mut times: Vec<f64> = (0..ROUNDS).map(|_| next()).collect();
        let gpu = median(&mut times);
        println!(
            "GPU, {precision}     {gpu:8.1} ms per step, {:.2} of the time here in fp32",
            gpu / ours
        );
    }
}

fn main() {
    let precisions = [Precision::Fp32, Precision::Bf16];
    let mut torch = precisions.map(Torch::start);
    let mut peaks = Vec::new();
    let mut here = precisions.map(|precision| {
        let mut next = stepper::<Flex>(FlexDevice, precision);
        next();
        // Of the later ones, with what the earlier ones hold.
        peaks.push(peak_mib(std::process::id()));
        (next, Vec::new())
    });
    let mut there = precisions.map(|_| Vec::new());
    for round in 0..=ROUNDS {
        for ((next, times), (torch, theirs)) in here.iter_mut().zip(torch.iter_mut().zip(&mut there)) {
            let (ours, torch) = (next(), torch.as_mut().map(Torch::step));
            // The first step does not count.
            if round > 0 {
                times.push(ours);
                theirs.extend(torch);
            }
        }
    }
    let here = here.map(|(_, mut times)| median(&mut times));
    for (i, precision) in precisions.into_iter().enumerate() {
        println!(
            "here, {precision}    {:8.1} ms per step, median of {ROUNDS}, peak {:.0} MiB",
            here[i], peaks[i]
        );
        if let Some(torch) = &torch[i] {
            let theirs = median(&mut there[i]);
            println!(
                "PyTorch, {precision} {theirs:8.1} ms per step, ratio {:.2}, peak {:.0} MiB",
                here[i] / theirs,
                torch.peak_mib()
            );
        }
    }
    if torch[0].is_none() {
        println!("PyTorch: not measured, SAMCLIP_TORCH_PYTHON is not set");
    }
    #[cfg(feature = "train-vulkan")]
    measure_gpu(here[0]);
}
