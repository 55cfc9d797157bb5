//! Proof that a provider runs a graph: the nodes counted in the profile of one warm-up run.
//!
//! A provider that registers may still be given nothing: ONNX Runtime then runs the graph on the CPU and says nothing.
//! TensorRT turns a whole graph into one node, so counting alone proves little either way. What is asked instead: the
//! provider runs at least one node, and no matrix product or convolution, where the work of these graphs is, runs
//! anywhere else. Casts and shape arithmetic may stay behind.

use std::collections::BTreeMap;

use serde::Deserialize;

/// Operators that carry the work, by the start of their names (fused forms have longer ones).
const HEAVY: [&str; 10] = [
    "MatMul",
    "Gemm",
    "Conv",
    "Einsum",
    "FusedMatMul",
    "FusedGemm",
    "FusedConv",
    "QLinear",
    "Attention",
    "MultiHeadAttention",
];

/// Nodes by provider, and the heavy ones by provider and operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proof {
    /// Nodes run, by ONNX Runtime's name of the provider.
    pub nodes: BTreeMap<String, usize>,
    heavy: BTreeMap<(String, String), usize>,
}

#[derive(Deserialize)]
struct Record {
    #[serde(default)]
    cat: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    args: BTreeMap<String, serde_json::Value>,
}

impl Proof {
    /// Reads a profile of exactly one run.
    ///
    /// # Errors
    /// Why the text is no profile.
    pub fn read(profile: &str) -> Result<Self, String> {
        let records: Vec<Record> = serde_json::from_str(profile).map_err(|e| format!("profile: {e}"))?;
        let mut proof = Self::default();
        for record in records {
            // Each node also has fence records of its own; only the kernel's counts.
            if record.cat != "Node" || !record.name.ends_with("_kernel_time") {
                continue;
            }
            let text = |key: &str| record.args.get(key).and_then(|v| v.as_str()).unwrap_or_default();
            let (provider, op) = (text("provider").to_owned(), text("op_name").to_owned());
            if HEAVY.iter().any(|start| op.starts_with(start)) {
                *proof.heavy.entry((provider.clone(), op)).or_default() += 1;
            }
            *proof.nodes.entry(provider).or_default() += 1;
        }
        Ok(proof)
    }

    /// Adds the nodes of another graph.
    pub fn add(&mut self, other: &Self) {
        for (provider, count) in &other.nodes {
            *self.nodes.entry(provider.clone()).or_default() += count;
        }
        for (key, count) in &other.heavy {
            *self.heavy.entry(key.clone()).or_default() += count;
        }
    }

    /// Whether `provider` (ONNX Runtime's name) does the work.
    ///
    /// # Errors
    /// What it leaves to others.
    pub fn judge(&self, provider: &str) -> Result<(), String> {
        if self.nodes.get(provider).copied().unwrap_or(0) == 0 {
            return Err(format!(
                "it registered but runs no node of the graph; {}",
                self.summary()
            ));
        }
        let elsewhere: Vec<String> = self
            .heavy
            .iter()
            .filter(|((p, _), _)| p != provider)
            .map(|((p, op), count)| format!("{count} {op} on {p}"))
            .collect();
        if elsewhere.is_empty() {
            Ok(())
        } else {
            Err(format!("it leaves work to others: {}", elsewhere.join(", ")))
        }
    }

    /// `353 nodes on CPUExecutionProvider`.
    #[must_use]
    pub fn summary(&self) -> String {
        let parts: Vec<String> = self.nodes.iter().map(|(p, n)| format!("{n} nodes on {p}")).collect();
        if parts.is_empty() {
            "the profile holds no node".into()
        } else {
            parts.join(", ")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn profile(nodes: &[(&str, &str)]) -> String {
        let one = |(op, provider): &(&str, &str)| {
            format!(
                r#"{{"cat":"Node","pid":1,"tid":1,"dur":3,"ts":9,"ph":"X","name":"n_kernel_time",
                     "args":{{"op_name":"{op}","provider":"{provider}","thread_scheduling_stats":"","input_type_shape":[]}}}},
                   {{"cat":"Node","name":"n_fence_after","args":{{"op_name":"{op}"}}}}"#
            )
        };
        let nodes: Vec<String> = nodes.iter().map(one).collect();
        format!(
            r#"[{{"cat":"Session","pid":1,"tid":1,"dur":5,"ts":1,"ph":"X","name":"model_loading_uri","args":{{}}}},{}]"#,
            nodes.join(",")
        )
    }

    const TENSOR_RT: &str = "TensorrtExecutionProvider";
    const CPU: &str = "CPUExecutionProvider";

    #[test]
    fn one_fused_node_with_casts_around_it_is_proof() {
        let proof = Proof::read(&profile(&[
            ("TRTKernel_graph", TENSOR_RT),
            ("Cast", CPU),
            ("Cast", CPU),
        ]))
        .unwrap();
        assert_eq!(proof.nodes[CPU], 2);
        assert_eq!(proof.judge(TENSOR_RT), Ok(()));
        assert_eq!(
            proof.summary(),
            "2 nodes on CPUExecutionProvider, 1 nodes on TensorrtExecutionProvider"
        );
    }

    #[test]
    fn a_provider_that_runs_nothing_is_refused_with_who_runs_it() {
        let proof = Proof::read(&profile(&[("MatMul", CPU), ("Add", CPU)])).unwrap();
        let error = proof.judge(TENSOR_RT).unwrap_err();
        assert!(
            error.contains("runs no node") && error.contains("2 nodes on CPUExecutionProvider"),
            "{error}"
        );
        assert!(Proof::read("[]").unwrap().judge(CPU).is_err());
    }

    #[test]
    fn work_left_to_the_cpu_is_refused_by_operator() {
        let mut proof = Proof::read(&profile(&[("TRTKernel_graph", TENSOR_RT)])).unwrap();
        proof.add(&Proof::read(&profile(&[("TRTKernel_graph", TENSOR_RT), ("ConvTranspose", CPU)])).unwrap());
        assert_eq!(proof.nodes[TENSOR_RT], 2);
        let error = proof.judge(TENSOR_RT).unwrap_err();
        assert_eq!(
            error,
            "it leaves work to others: 1 ConvTranspose on CPUExecutionProvider"
        );
    }

    #[test]
    fn what_is_no_profile_is_an_error() {
        assert!(Proof::read("").unwrap_err().starts_with("profile: "));
        assert!(Proof::read("[{\"cat\":").unwrap_err().starts_with("profile: "));
    }
}
