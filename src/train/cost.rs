//! [`Ops`] as a ledger: which weights a model asks for, and how many multiply-accumulates it takes.
//!
//! Nothing is computed: a tensor is its shape. Multiply-accumulates are those of matrix products and convolutions,
//! attention's included (paper.md section 5 counts so); element-wise work is left out.

use std::cell::RefCell;

use crate::train::model::inventory::decoder;
use crate::train::model::{ClipConfig, clip, clip_head, encoder};
use crate::train::ops::{Conv, Ops, broadcast, product, resized};
use crate::train::recipe::Recipe;
use crate::train::weights::Inventory;

/// Lists weights and counts multiply-accumulates of whatever model runs on it.
#[derive(Debug, Default)]
pub struct Ledger {
    requested: RefCell<Inventory>,
    multiply_accumulates: RefCell<u64>,
}

/// What a part of a model takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cost {
    /// Number of weight values.
    pub parameters: u64,
    /// Multiply-accumulates of one run.
    pub multiply_accumulates: u64,
}

/// The cost of what `model` does on a ledger; its inputs are made with [`Ledger::input`].
pub fn cost(model: impl FnOnce(&Ledger)) -> Cost {
    let ledger = Ledger::default();
    model(&ledger);
    let parameters = ledger
        .requested
        .borrow()
        .values()
        .map(|s| s.iter().product::<usize>() as u64)
        .sum();
    Cost {
        parameters,
        multiply_accumulates: ledger.multiply_accumulates.take(),
    }
}

/// The weights that `model` asks for.
pub fn inventory(model: impl FnOnce(&Ledger)) -> Inventory {
    let ledger = Ledger::default();
    model(&ledger);
    ledger.requested.take()
}

/// One part of a recipe's model and what it takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// What it takes.
    pub cost: Cost,
    /// What one run is for.
    pub per: String,
}

/// What the parts of a recipe's model take at the bundle's size: the encoder and the CLIP head per frame, the mask
/// decoder per batch of prompts, the text tower per text.
#[must_use]
pub fn parts(recipe: &Recipe) -> Vec<Part> {
    let recipe = recipe.exported();
    let (config, side, grid) = (recipe.merged(), recipe.sam.image_size, recipe.sam.grid());
    let encoder = cost(|l| {
        let image = l.input(&[1, 3, side, side]);
        let tokens = encoder::tokens(l, &config.sam, &image);
        let _ = encoder::embeddings(l, &config.sam, &image, &tokens);
    });
    let head = cost(|l| {
        let _ = clip_head::embed(l, &config, &l.input(&[1, grid, grid, config.sam.embed_dim]));
    });
    let (prompts, points) = (recipe.export.prompts, recipe.export.points);
    let decoder = cost(|l| decoder(l, &config.sam, prompts, points));
    let text = cost(|l| {
        let length = config.text.context_length;
        let _ = clip::encode_text(
            l,
            &config.text,
            config.clip_head.text_dim,
            config.quick_gelu,
            &[1, length],
        );
    });
    [
        ("image encoder", encoder, format!("frame of {side} px")),
        ("CLIP head", head, format!("frame of {side} px")),
        ("SAM head", decoder, format!("{prompts} prompts of {points} points")),
        ("text tower", text, "text".to_owned()),
    ]
    .map(|(name, cost, per)| Part { name, cost, per })
    .into()
}

/// What a CLIP's image tower takes per picture of its own size.
#[must_use]
pub fn image_tower(config: &ClipConfig) -> Cost {
    cost(|l| {
        let side = config.vision_cfg.image_size;
        let _ = clip::encode_image(l, config, &l.input(&[1, 3, side, side]));
    })
}

/// [`parts`] as a table in Markdown.
#[must_use]
pub fn table(recipe: &Recipe) -> String {
    let mut out = String::from("| part | parameters | GMAC | per |\n|---|---|---|---|\n");
    for Part { name, cost, per } in parts(recipe) {
        let giga = cost.multiply_accumulates as f64 / 1e9;
        out.push_str(&format!("| {name} | {} | {giga:.3} | {per} |\n", cost.parameters));
    }
    out
}

impl Ledger {
    /// An input of this shape.
    #[must_use]
    pub fn input(&self, shape: &[usize]) -> Vec<usize> {
        shape.to_vec()
    }

    fn count(&self, multiply_accumulates: usize) {
        *self.multiply_accumulates.borrow_mut() += multiply_accumulates as u64;
    }
}

impl Ops for Ledger {
    type Tensor = Vec<usize>;
    type Tokens = [usize; 2];

    fn shape(&self, x: &Vec<usize>) -> Vec<usize> {
        x.clone()
    }

    fn weight(&self, name: &str, shape: &[usize]) -> Vec<usize> {
        self.requested.borrow_mut().insert(name.into(), shape.into());
        shape.into()
    }

    fn constant(&self, _: Vec<f32>, shape: &[usize]) -> Vec<usize> {
        shape.into()
    }

    fn linear_with(&self, x: &Vec<usize>, weight: &Vec<usize>, _: Option<&Vec<usize>>) -> Vec<usize> {
        self.count(x.iter().product::<usize>() * weight[0]);
        resized(x, x.len() - 1, weight[0])
    }

    fn matmul(&self, a: &Vec<usize>, b: &Vec<usize>) -> Vec<usize> {
        let (shape, count) = product(a, b);
        self.count(count);
        shape
    }

    fn conv2d(&self, x: &Vec<usize>, name: &str, conv: Conv) -> Vec<usize> {
        let [batch, channels, height, width] = <[usize; 4]>::try_from(x.clone()).expect("conv2d takes NCHW");
        let kernel = [conv.out, channels, conv.kernel, conv.kernel];
        let _ = self.weight(&format!("{name}.weight"), &kernel);
        if conv.bias {
            let _ = self.weight(&format!("{name}.bias"), &[conv.out]);
        }
        let shape = vec![batch, conv.out, conv.side(height), conv.side(width)];
        self.count(shape.iter().product::<usize>() * channels * conv.kernel * conv.kernel);
        shape
    }

    fn add(&self, a: &Vec<usize>, b: &Vec<usize>) -> Vec<usize> {
        broadcast(a, b)
    }

    fn sub(&self, a: &Vec<usize>, b: &Vec<usize>) -> Vec<usize> {
        broadcast(a, b)
    }

    fn mul(&self, a: &Vec<usize>, b: &Vec<usize>) -> Vec<usize> {
        broadcast(a, b)
    }

    fn div(&self, a: &Vec<usize>, b: &Vec<usize>) -> Vec<usize> {
        broadcast(a, b)
    }

    fn scale(&self, x: &Vec<usize>, _: f32) -> Vec<usize> {
        x.clone()
    }

    fn shift(&self, x: &Vec<usize>, _: f32) -> Vec<usize> {
        x.clone()
    }

    fn reshape(&self, x: &Vec<usize>, shape: &[usize]) -> Vec<usize> {
        let [from, to] = [x, shape].map(|s| s.iter().product::<usize>());
        assert_eq!(from, to, "reshape {x:?} to {shape:?}");
        shape.into()
    }

    fn permute(&self, x: &Vec<usize>, order: &[usize]) -> Vec<usize> {
        order.iter().map(|&i| x[i]).collect()
    }

    fn slice(&self, x: &Vec<usize>, axis: usize, start: usize, end: usize) -> Vec<usize> {
        resized(x, axis, end - start)
    }

    fn concat(&self, parts: &[Vec<usize>], axis: usize) -> Vec<usize> {
        resized(&parts[0], axis, parts.iter().map(|p| p[axis]).sum())
    }

    fn pad_end(&self, x: &Vec<usize>, axis: usize, amount: usize) -> Vec<usize> {
        resized(x, axis, x[axis] + amount)
    }

    fn expand(&self, _: &Vec<usize>, shape: &[usize]) -> Vec<usize> {
        shape.into()
    }

    fn rows(&self, table: &Vec<usize>, indices: &[usize]) -> Vec<usize> {
        resized(table, 0, indices.len())
    }

    fn softmax(&self, x: &Vec<usize>) -> Vec<usize> {
        x.clone()
    }

    fn layer_norm(&self, x: &Vec<usize>, name: &str, _: f32) -> Vec<usize> {
        let width = *x.last().expect("x has an axis");
        let _ = self.weight(&format!("{name}.weight"), &[width]);
        let _ = self.weight(&format!("{name}.bias"), &[width]);
        x.clone()
    }

    fn gelu(&self, x: &Vec<usize>) -> Vec<usize> {
        x.clone()
    }

    fn relu(&self, x: &Vec<usize>) -> Vec<usize> {
        x.clone()
    }

    fn sigmoid(&self, x: &Vec<usize>) -> Vec<usize> {
        x.clone()
    }

    fn sin(&self, x: &Vec<usize>) -> Vec<usize> {
        x.clone()
    }

    fn cos(&self, x: &Vec<usize>) -> Vec<usize> {
        x.clone()
    }

    fn sqrt(&self, x: &Vec<usize>) -> Vec<usize> {
        x.clone()
    }

    fn log(&self, x: &Vec<usize>) -> Vec<usize> {
        x.clone()
    }

    fn equals(&self, x: &Vec<usize>, _: f32) -> Vec<usize> {
        x.clone()
    }

    fn max(&self, x: &Vec<usize>, axis: usize) -> Vec<usize> {
        resized(x, axis, 1)
    }

    fn sum(&self, x: &Vec<usize>, axis: usize) -> Vec<usize> {
        resized(x, axis, 1)
    }

    fn embed(&self, table: &Vec<usize>, &[texts, length]: &[usize; 2]) -> Vec<usize> {
        vec![texts, length, table[1]]
    }

    fn end_of_text(&self, &[texts, length]: &[usize; 2]) -> Vec<usize> {
        vec![texts, 1, length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::model::{
        ClipHeadConfig, MergedConfig, Pooling, SamConfig, TextConfig, clip, clip_head, encoder, inventory,
    };

    fn encoder_at(side: usize) -> Cost {
        let sam = SamConfig::vit_b();
        cost(|l| {
            let tokens = encoder::tokens(l, &sam, &l.input(&[1, 3, side, side]));
            let _ = encoder::neck(l, &sam, &tokens);
        })
    }

    /// Three blocks of the backbone alone on a `grid × grid` map.
    fn head_blocks(grid: usize, max_grid: usize) -> f64 {
        let config = |layers| MergedConfig {
            sam: SamConfig::vit_b(),
            clip_head: ClipHeadConfig {
                layers,
                text_dim: 768,
                mlp_dim: 768,
                max_grid,
                pooling: Pooling::Max,
            },
            text: TextConfig::vit_l_14(),
            quick_gelu: false,
        };
        let count = |layers| {
            cost(|l| {
                let _ = clip_head::embed(l, &config(layers), &l.input(&[1, grid, grid, 768]));
            })
            .multiply_accumulates
        };
        (count(3) - count(0)) as f64 / 1e9
    }

    fn assert_near(found: f64, published: f64, tolerance: f64) {
        assert!(
            (found / published - 1.0).abs() < tolerance,
            "found {found}, published {published}"
        );
    }

    #[test]
    fn sam_vit_b_has_the_parameters_and_the_cost_of_the_published_one() {
        // paper.md section 5 (torch's flop counter) and section 6 (segment-anything's modules).
        assert_eq!(encoder_at(1024).parameters, 89_670_912);
        for (side, published) in [(224, 17.7), (336, 47.8), (448, 73.6), (1024, 486.0)] {
            assert_near(encoder_at(side).multiply_accumulates as f64 / 1e9, published, 0.01);
        }
        let values = inventory::sam(&SamConfig::vit_b());
        let values: usize = values.values().map(|s| s.iter().product::<usize>()).sum();
        assert_eq!(
            values - 2 * 128,
            93_735_472,
            "without the Fourier matrix, which is a buffer"
        );
    }

    #[test]
    fn three_head_layers_cost_what_pooling_saves() {
        for (grid, max_grid, published) in [(14, 64, 4.4), (28, 64, 19.6), (64, 64, 165.0), (64, 32, 27.0)] {
            assert_near(head_blocks(grid, max_grid), published, 0.02);
        }
    }

    #[test]
    fn the_text_tower_of_vit_l_14_has_its_published_parameters() {
        let text = TextConfig::vit_l_14();
        let found = cost(|l| {
            let _ = clip::encode_text(l, &text, 768, false, &[1, 77]);
        });
        assert_eq!(found.parameters, 123_650_304);
    }
}
