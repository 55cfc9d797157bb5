//! Every fused operator against the framework's operators and their gradients, at sizes that do not fit the blocks.

use std::fmt::Debug;

use burn_autodiff::Autodiff;
use burn_backend::ops::FloatTensorOps as _;
use burn_backend::tensor::FloatTensor;
use burn_backend::{AutodiffBackend, Slice, TensorData, TensorMetadata, read_sync};
use burn_flex::{Flex, FlexDevice};

use super::convolution::ConvGeometry;
use super::{Kernels, composed};
use crate::train::precision::Precision;

const FULL: Precision = Precision::Fp32;

type Tape = Autodiff<Flex>;
type Tensor = FloatTensor<Flex>;
type Tracked = FloatTensor<Tape>;

/// Values between -1 and 1 that repeat with their `seed`.
fn random(shape: &[usize], seed: u32) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let values = (0..shape.iter().product()).map(|_| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        f32::from((state >> 16) as u16) / 32_768.0 - 1.0
    });
    given(values.collect(), shape)
}

fn given(values: Vec<f32>, shape: &[usize]) -> Tensor {
    Flex::float_from_data(TensorData::new(values, shape.to_vec()), &FlexDevice)
}

fn values(x: Tensor) -> Vec<f32> {
    read_sync(Flex::float_into_data(x)).unwrap().try_into_vec().unwrap()
}

fn sizes(x: &impl TensorMetadata) -> Vec<usize> {
    x.shape().iter().copied().collect()
}

fn assert_close(what: &dyn Debug, found: Tensor, expected: Tensor) {
    assert_eq!(sizes(&found), sizes(&expected), "{what:?}");
    let (found, expected) = (values(found), values(expected));
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let apart = norm(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
    let length = norm(&mut expected.iter().copied());
    assert!(
        length > 0.0 && apart < 1e-5 * length,
        "{what:?}: {apart:.2e} of {length:.2e}"
    );
}

/// A weight for each value of a result, so that its gradient is not a constant.
fn weights(like: &impl TensorMetadata) -> Tensor {
    random(&sizes(like), 99)
}

/// The result of `f` and the gradients of its weighted sum by all inputs.
fn result_and_gradients(inputs: &[Tensor], f: impl Fn(&[Tracked]) -> Tracked) -> (Tensor, Vec<Tensor>) {
    let tracked: Vec<Tracked> = inputs
        .iter()
        .map(|x| Tape::from_inner(x.clone()).require_grad())
        .collect();
    let result = f(&tracked);
    let weighted = Tape::float_mul(result.clone(), Tape::from_inner(weights(&result)));
    let mut tape = Tape::backward(Tape::float_sum(weighted));
    let gradients = tracked.iter().map(|x| Tape::grad_remove(x, &mut tape).unwrap());
    (Tape::inner(result), gradients.collect())
}

/// Compares results and gradients of the fused and the composed operator, and both with `backward`, the composed gradients.
fn check(
    what: impl Debug,
    inputs: &[Tensor],
    fused: impl Fn(&[Tracked]) -> Tracked,
    composed: impl Fn(&[Tracked]) -> Tracked,
    backward: impl Fn(&[Tensor], Tensor) -> Vec<Tensor>,
) {
    let (found, by_fused) = result_and_gradients(inputs, fused);
    let (expected, by_tape) = result_and_gradients(inputs, composed);
    let by_hand = backward(inputs, weights(&expected));
    assert_close(&(&what, "result"), found, expected);
    assert_eq!(by_hand.len(), inputs.len());
    for (i, ((fused, tape), hand)) in by_fused.into_iter().zip(by_tape).zip(by_hand).enumerate() {
        assert_close(&(&what, "gradient", i), fused, tape.clone());
        assert_close(&(&what, "composed gradient", i), hand, tape);
    }
}

/// The same values, of a tensor whose axes lie in memory in another order.
fn permuted(x: Tensor, order: &[usize]) -> Tensor {
    let mut back = vec![0; order.len()];
    order.iter().enumerate().for_each(|(to, &from)| back[from] = to);
    let memory = Flex::float_permute(x, order).to_contiguous();
    Flex::float_permute(memory, &back)
}

#[test]
fn affine_maps() {
    for (rows, inner, outer) in [(1, 3, 5), (70, 33, 8), (1500, 20, 7), (1100, 600, 500)] {
        let (x, w, b) = (
            random(&[rows, inner], 1),
            random(&[outer, inner], 2),
            random(&[outer], 3),
        );
        let by = |inputs: &[Tensor], grad: Tensor| {
            let by_input = composed::affine_by_input::<Flex>(inputs[1].clone(), grad.clone(), FULL);
            let (by_weight, by_bias) = composed::affine_by_parameters::<Flex>(inputs[0].clone(), grad, FULL);
            vec![by_input, by_weight, by_bias]
        };
        check(
            (rows, inner, outer),
            &[permuted(x.clone(), &[1, 0]), w.clone(), b],
            |i| Tape::affine(i[0].clone(), i[1].clone(), Some(i[2].clone()), FULL),
            |i| composed::affine::<Tape>(i[0].clone(), i[1].clone(), Some(i[2].clone()), FULL),
            by,
        );
        check(
            (rows, inner, outer, "no bias"),
            &[x, w],
            |i| Tape::affine(i[0].clone(), i[1].clone(), None, FULL),
            |i| composed::affine::<Tape>(i[0].clone(), i[1].clone(), None, FULL),
            |inputs, grad| by(inputs, grad)[..2].to_vec(),
        );
    }
}

#[test]
fn convolutions_of_any_stride_and_padding() {
    for (batch, channels, (height, width), (kernel, stride, padding), out) in [
        (2, 3, (9, 11), (3, 2, 1), 5),
        (1, 4, (8, 8), (4, 4, 0), 6),
        (3, 5, (7, 4), (3, 1, 1), 2),
        (1, 2, (5, 5), (2, 1, 0), 3),
        // patches of several tasks
        (2, 24, (56, 48), (3, 2, 1), 17),
        // a kernel that reaches beyond both sides
        (1, 2, (3, 2), (5, 1, 2), 4),
    ] {
        let geometry = ConvGeometry {
            batch,
            channels,
            height,
            width,
            kernel,
            stride,
            padding,
        };
        let x = permuted(random(&[batch, channels, height, width], 4), &[0, 2, 3, 1]);
        let (w, b) = (random(&[out, channels, kernel, kernel], 5), random(&[out], 6));
        check(
            geometry,
            &[x, w, b],
            |i| Tape::convolution(i[0].clone(), i[1].clone(), Some(i[2].clone()), geometry, FULL),
            |i| composed::convolution::<Tape>(i[0].clone(), i[1].clone(), Some(i[2].clone()), geometry, FULL),
            |inputs, grad| {
                let by_input = composed::convolution_by_input::<Flex>(inputs[1].clone(), grad.clone(), geometry, FULL);
                let (by_weight, by_bias) =
                    composed::convolution_by_parameters::<Flex>(inputs[0].clone(), grad, geometry, FULL);
                vec![by_input, by_weight, by_bias]
            },
        );
    }
}

#[test]
fn attention_of_tokens_to_each_other() {
    for (batch, tokens, heads, width) in [(2, 5, 3, 4), (1, 77, 2, 8), (2, 300, 1, 6)] {
        let qkv = random(&[batch, tokens, 3 * heads * width], 7);
        let hidden = (0..tokens * tokens).map(|i| if i % tokens > i / tokens { -1e9 } else { 0.0 });
        let hidden = TensorData::new(hidden.collect::<Vec<f32>>(), vec![tokens, tokens]);
        for mask in [None, Some(Flex::float_from_data(hidden, &FlexDevice))] {
            let tracked = || mask.clone().map(Tape::from_inner);
            check(
                (batch, tokens, heads, width, mask.is_some()),
                std::slice::from_ref(&qkv),
                |i| Tape::self_attention(i[0].clone(), tracked(), heads, FULL),
                |i| composed::self_attention::<Tape>(i[0].clone(), tracked(), heads, FULL),
                |inputs, grad| {
                    vec![composed::self_attention_backward::<Flex>(
                        inputs[0].clone(),
                        mask.clone(),
                        heads,
                        grad,
                        FULL,
                    )]
                },
            );
        }
    }
}

#[test]
fn attention_to_other_tokens() {
    // The last two have more queries than one task takes.
    for (batch, queries, keys, heads, width) in [(2, 3, 50, 2, 4), (1, 300, 6, 4, 8), (1, 150, 700, 1, 5)] {
        let c = heads * width;
        let inputs = [(queries, 8), (keys, 9), (keys, 10)].map(|(n, seed)| random(&[batch, n, c], seed));
        let parts = |i: &[Tracked]| [i[0].clone(), i[1].clone(), i[2].clone()];
        check(
            (batch, queries, keys, heads, width),
            &inputs,
            |i| Tape::cross_attention(parts(i), heads, FULL),
            |i| composed::cross_attention::<Tape>(parts(i), heads, FULL),
            |i, grad| {
                composed::cross_attention_backward::<Flex>(
                    [i[0].clone(), i[1].clone(), i[2].clone()],
                    heads,
                    grad,
                    FULL,
                )
                .to_vec()
            },
        );
    }
}

#[test]
fn a_part_of_a_tensor_attends_as_a_copy_of_it() {
    let all = random(&[3, 40, 36], 11);
    let part = Flex::float_slice(
        all,
        &[
            Slice::new(1, Some(3), 1),
            Slice::new(5, Some(25), 1),
            Slice::new(6, Some(30), 1),
        ],
    );
    let copy = part.to_contiguous();
    assert!(!part.is_contiguous());
    assert_close(
        &"part",
        Flex::self_attention(part, None, 2, FULL),
        Flex::self_attention(copy, None, 2, FULL),
    );
}

#[test]
fn layer_norms() {
    for shape in [vec![2, 3, 7], vec![900, 48], vec![1, 1, 1, 130]] {
        let width = *shape.last().unwrap();
        let x = random(&shape, 12);
        let order: Vec<usize> = (0..shape.len()).rev().collect();
        check(
            &shape,
            &[permuted(x, &order), random(&[width], 13), random(&[width], 14)],
            |i| Tape::layer_norm_last(i[0].clone(), i[1].clone(), i[2].clone(), 1e-5),
            |i| composed::layer_norm_last::<Tape>(i[0].clone(), i[1].clone(), i[2].clone(), 1e-5),
            |i, grad| composed::layer_norm_last_backward::<Flex>(i[0].clone(), i[1].clone(), grad, 1e-5).to_vec(),
        );
    }
}

#[test]
fn softmax_over_the_last_axis() {
    for shape in [vec![3, 4, 5], vec![1000, 50], vec![2, 1]] {
        let x = Flex::float_mul_scalar(random(&shape, 15), 30.0_f32.into());
        let y = composed::softmax_last::<Flex>(x.clone());
        assert_close(&shape, Flex::softmax_last(x.clone()), y.clone());
        if shape[1] > 1 {
            check(
                &shape,
                &[x],
                |i| Tape::softmax_last(i[0].clone()),
                |i| composed::softmax_last::<Tape>(i[0].clone()),
                |_, grad| vec![composed::softmax_last_backward::<Flex>(y.clone(), grad)],
            );
        }
    }
}

#[test]
fn what_a_mask_hides_has_no_weight_at_all() {
    // Not even a subnormal one, which slows every product down that it takes part in.
    let (batch, tokens, heads, width) = (2, 9, 2, 8);
    let hides = |i: usize| if i % tokens > i / tokens { -1e9 } else { 0.0 };
    let mask = given((0..tokens * tokens).map(hides).collect(), &[tokens, tokens]);
    let qkv = random(&[batch, tokens, 3 * width], 24);
    // Of the first four tokens alone, which see none of the others.
    let of_the_first = (0..batch * tokens * width).map(|i| f32::from(u8::from(i / width % tokens < 4)));
    let grad = given(of_the_first.collect(), &[batch, tokens, width]);
    let by_qkv = values(Flex::self_attention_backward(qkv, Some(mask), heads, grad, FULL));
    for (i, token) in by_qkv.chunks(3 * width).enumerate() {
        let nothing = token.iter().all(|&value| value == 0.0);
        assert_eq!(nothing, i % tokens >= 4, "token {i}: {token:?}");
    }
    let row = given(vec![0.0, -1e9, -86.0], &[1, 3]);
    assert_eq!(values(Flex::softmax_last(row))[..2], [1.0, 0.0]);
}

#[test]
fn what_is_not_a_number_stays_so() {
    for row in [[f32::NAN, 0.0, 1.0], [0.0, f32::NAN, 1.0]] {
        let y = values(Flex::softmax_last(given(row.to_vec(), &[1, 3])));
        assert!(y.iter().all(|value| value.is_nan()), "{y:?}");
        assert!(
            values(Flex::gelu_erf(given(row.to_vec(), &[3])))
                .iter()
                .any(|value| value.is_nan())
        );
    }
}

#[test]
fn gelu_in_its_exact_form() {
    let x = Flex::float_mul_scalar(random(&[3, 40, 1001], 16), 6.0_f32.into());
    let grad = random(&[3, 40, 1001], 17);
    for order in [[0, 1, 2], [2, 0, 1]] {
        let (x, grad) = (permuted(x.clone(), &order), permuted(grad.clone(), &order));
        assert_close(&order, Flex::gelu_erf(x.clone()), composed::gelu_erf::<Flex>(x.clone()));
        let expected = composed::gelu_erf_backward::<Flex>(x.clone(), grad.clone());
        assert_close(&order, Flex::gelu_erf_backward(x.clone(), grad), expected.clone());
        // by the other layout of the gradient
        let (_, by_fused) = result_and_gradients(std::slice::from_ref(&x), |i| Tape::gelu_erf(i[0].clone()));
        let by_hand = composed::gelu_erf_backward::<Flex>(x.clone(), weights(&x));
        assert_close(&order, by_fused[0].clone(), by_hand);
    }
}

#[test]
fn only_what_is_tracked_has_a_gradient() {
    let (x, w, b) = (random(&[4, 3], 18), random(&[5, 3], 19), random(&[5], 20));
    let (x, w) = (Tape::from_inner(x), Tape::from_inner(w).require_grad());
    let y = Tape::affine(x.clone(), w.clone(), Some(Tape::from_inner(b)), FULL);
    let mut tape = Tape::backward(Tape::float_sum(y));
    assert!(Tape::grad_remove(&w, &mut tape).is_some());
    assert!(Tape::grad_remove(&x, &mut tape).is_none());
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let inputs = [random(&[2000, 40], 21), random(&[30, 40], 22), random(&[30], 23)];
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let (y, gradients) = pool.install(|| {
            result_and_gradients(&inputs, |i| {
                Tape::affine(i[0].clone(), i[1].clone(), Some(i[2].clone()), FULL)
            })
        });
        (values(y), gradients.into_iter().map(values).collect::<Vec<_>>())
    };
    assert!(run(1) == run(3));
}
