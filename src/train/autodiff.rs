//! [`Ops`] over the training framework: values, and gradients where asked.
//!
//! Generic over the backend: `Autodiff<Flex>` trains on the CPU, `Autodiff<Gpu>` on a GPU; plain `Flex` and `Gpu` compute
//! without a tape (teachers, evaluation).

use std::collections::BTreeMap;

use burn_backend::tensor::{FloatTensor, IntTensor};
use burn_backend::{Backend, Shape, Slice, TensorData, TensorMetadata, read_sync};

use crate::train::kernels::{ConvGeometry, Kernels};
use crate::train::ops::{Conv, Ops};
use crate::train::precision::Precision;
use crate::train::weights::{Values, Weights};

/// Values on a device, by weight name; the interpreter of one forward pass.
pub struct Graph<B: Backend> {
    device: B::Device,
    precision: Precision,
    parameters: BTreeMap<String, FloatTensor<B>>,
}

/// Token ids of a batch of texts, on the host.
#[derive(Clone, Debug)]
pub struct TokenBatch {
    ids: Vec<u32>,
    length: usize,
}

impl TokenBatch {
    /// Texts of `length` tokens each, one after another.
    ///
    /// # Panics
    /// If `ids` is not a whole number of texts.
    #[must_use]
    pub fn new(ids: Vec<u32>, length: usize) -> Self {
        assert!(
            length > 0 && ids.len().is_multiple_of(length),
            "{} ids are not texts of {length}",
            ids.len()
        );
        Self { ids, length }
    }
}

impl<B: Kernels> Graph<B> {
    /// An interpreter holding `weights`, without gradients, in fp32.
    #[must_use]
    pub fn new(weights: &Weights, device: B::Device) -> Self {
        let parameters = weights
            .iter()
            .map(|(name, v)| (name.clone(), Self::upload(&device, v)))
            .collect();
        Self::from_parameters(parameters, device)
    }

    /// An interpreter over tensors that are already on the device, in fp32.
    #[must_use]
    pub fn from_parameters(parameters: BTreeMap<String, FloatTensor<B>>, device: B::Device) -> Self {
        Self {
            device,
            precision: Precision::Fp32,
            parameters,
        }
    }

    /// The same with linear layers, convolutions and attention in `precision`, which the device has to have
    /// ([`Precision::check`]).
    #[must_use]
    pub fn with_precision(self, precision: Precision) -> Self {
        Self { precision, ..self }
    }

    fn upload(device: &B::Device, values: &Values) -> FloatTensor<B> {
        // The backend has no rank 0: a scalar (`logit_scale`) has one axis on the device.
        let shape = if values.shape.is_empty() {
            vec![1]
        } else {
            values.shape.clone()
        };
        B::float_from_data(TensorData::new(values.data.clone(), shape), device)
    }

    /// The device that it computes on.
    #[must_use]
    pub fn device(&self) -> &B::Device {
        &self.device
    }

    /// The parameters by name.
    #[must_use]
    pub fn parameters(&self) -> &BTreeMap<String, FloatTensor<B>> {
        &self.parameters
    }

    /// Host values onto the device.
    #[must_use]
    pub fn input(&self, values: Vec<f32>, shape: &[usize]) -> FloatTensor<B> {
        B::float_from_data(TensorData::new(values, shape.to_vec()), &self.device)
    }

    /// Device values to the host, row-major.
    #[must_use]
    pub fn values(&self, x: &FloatTensor<B>) -> Vec<f32> {
        let data = read_sync(B::float_into_data(x.clone())).expect("a computed tensor can be read back");
        data.try_into_vec::<f32>().expect("the interpreter computes in f32")
    }

    fn indices(&self, ids: impl Iterator<Item = i64>) -> IntTensor<B> {
        let ids: Vec<i64> = ids.collect();
        let shape = vec![ids.len()];
        B::int_from_data(TensorData::new(ids, shape), &self.device)
    }
}

fn shape(sizes: &[usize]) -> Shape {
    Shape::from(sizes.to_vec())
}

fn sizes(x: &impl TensorMetadata) -> Vec<usize> {
    let shape = x.shape();
    (0..shape.num_dims()).map(|i| shape[i]).collect()
}

/// Both tensors at the same rank, by leading ones.
fn align<B: Backend>(a: &FloatTensor<B>, b: &FloatTensor<B>) -> (FloatTensor<B>, FloatTensor<B>) {
    let (sa, sb) = (sizes(a), sizes(b));
    let rank = sa.len().max(sb.len());
    let lift = |x: &FloatTensor<B>, s: Vec<usize>| {
        if s.len() == rank {
            return x.clone();
        }
        let mut lifted = vec![1; rank - s.len()];
        lifted.extend(s);
        B::float_reshape(x.clone(), Shape::from(lifted))
    };
    (lift(a, sa), lift(b, sb))
}

impl<B: Kernels> Ops for Graph<B> {
    type Tensor = FloatTensor<B>;
    type Tokens = TokenBatch;

    fn shape(&self, x: &Self::Tensor) -> Vec<usize> {
        sizes(x)
    }

    fn weight(&self, name: &str, expected: &[usize]) -> Self::Tensor {
        let found = self
            .parameters
            .get(name)
            .unwrap_or_else(|| panic!("weight {name:?} was checked against the inventory"));
        debug_assert!(expected.is_empty() || sizes(found) == expected, "{name}");
        found.clone()
    }

    fn constant(&self, values: Vec<f32>, shape: &[usize]) -> Self::Tensor {
        self.input(values, shape)
    }

    fn linear_with(&self, x: &Self::Tensor, weight: &Self::Tensor, bias: Option<&Self::Tensor>) -> Self::Tensor {
        let (mut dims, out) = (sizes(x), sizes(weight)[0]);
        let inner = dims[dims.len() - 1];
        let rows = dims.iter().product::<usize>() / inner;
        let flat = B::float_reshape(x.clone(), shape(&[rows, inner]));
        let y = B::affine(flat, weight.clone(), bias.cloned(), self.precision);
        *dims.last_mut().expect("x has an axis") = out;
        B::float_reshape(y, shape(&dims))
    }

    fn matmul(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor {
        let (a, b) = align::<B>(a, b);
        B::float_matmul(a, b)
    }

    fn conv2d(&self, x: &Self::Tensor, name: &str, conv: Conv) -> Self::Tensor {
        let [batch, channels, height, width] = <[usize; 4]>::try_from(sizes(x)).expect("conv2d takes NCHW");
        let weight = self.weight(
            &format!("{name}.weight"),
            &[conv.out, channels, conv.kernel, conv.kernel],
        );
        let bias = conv.bias.then(|| self.weight(&format!("{name}.bias"), &[conv.out]));
        if conv.kernel == 1 && conv.stride == 1 && conv.padding == 0 {
            let pixels = B::float_permute(x.clone(), &[0, 2, 3, 1]);
            let weight = B::float_reshape(weight, shape(&[conv.out, channels]));
            return B::float_permute(self.linear_with(&pixels, &weight, bias.as_ref()), &[0, 3, 1, 2]);
        }
        let Conv {
            kernel,
            stride,
            padding,
            ..
        } = conv;
        let geometry = ConvGeometry {
            batch,
            channels,
            height,
            width,
            kernel,
            stride,
            padding,
        };
        B::convolution(x.clone(), weight, bias, geometry, self.precision)
    }

    fn self_attention(&self, qkv: &Self::Tensor, heads: usize, mask: Option<&Self::Tensor>) -> Self::Tensor {
        let mut dims = sizes(qkv);
        let (batch, three) = (dims[0], dims[dims.len() - 1]);
        let tokens = dims.iter().product::<usize>() / (batch * three);
        let packed = B::float_reshape(qkv.clone(), shape(&[batch, tokens, three]));
        let out = B::self_attention(packed, mask.cloned(), heads, self.precision);
        *dims.last_mut().expect("tokens have an axis") = three / 3;
        B::float_reshape(out, shape(&dims))
    }

    fn attention(&self, q: &Self::Tensor, k: &Self::Tensor, v: &Self::Tensor, heads: usize) -> Self::Tensor {
        B::cross_attention([q, k, v].map(Clone::clone), heads, self.precision)
    }

    fn add(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor {
        let (a, b) = align::<B>(a, b);
        B::float_add(a, b)
    }

    fn sub(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor {
        let (a, b) = align::<B>(a, b);
        B::float_sub(a, b)
    }

    fn mul(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor {
        let (a, b) = align::<B>(a, b);
        B::float_mul(a, b)
    }

    fn div(&self, a: &Self::Tensor, b: &Self::Tensor) -> Self::Tensor {
        let (a, b) = align::<B>(a, b);
        B::float_div(a, b)
    }

    fn scale(&self, x: &Self::Tensor, factor: f32) -> Self::Tensor {
        B::float_mul_scalar(x.clone(), factor.into())
    }

    fn shift(&self, x: &Self::Tensor, offset: f32) -> Self::Tensor {
        B::float_add_scalar(x.clone(), offset.into())
    }

    fn reshape(&self, x: &Self::Tensor, to: &[usize]) -> Self::Tensor {
        B::float_reshape(x.clone(), shape(to))
    }

    fn permute(&self, x: &Self::Tensor, order: &[usize]) -> Self::Tensor {
        B::float_permute(x.clone(), order)
    }

    fn slice(&self, x: &Self::Tensor, axis: usize, start: usize, end: usize) -> Self::Tensor {
        let slices: Vec<Slice> = sizes(x)
            .iter()
            .enumerate()
            .map(|(i, &size)| {
                let (from, to) = if i == axis { (start, end) } else { (0, size) };
                Slice::new(from as isize, Some(to as isize), 1)
            })
            .collect();
        B::float_slice(x.clone(), &slices)
    }

    fn concat(&self, parts: &[Self::Tensor], axis: usize) -> Self::Tensor {
        B::float_cat(parts.to_vec(), axis)
    }

    fn pad_end(&self, x: &Self::Tensor, axis: usize, amount: usize) -> Self::Tensor {
        if amount == 0 {
            return x.clone();
        }
        let mut dims = sizes(x);
        dims[axis] = amount;
        let zeros = self.input(vec![0.0; dims.iter().product()], &dims);
        B::float_cat(vec![x.clone(), zeros], axis)
    }

    fn expand(&self, x: &Self::Tensor, to: &[usize]) -> Self::Tensor {
        B::float_expand(x.clone(), shape(to))
    }

    fn rows(&self, table: &Self::Tensor, indices: &[usize]) -> Self::Tensor {
        B::float_select(table.clone(), 0, self.indices(indices.iter().map(|&i| i as i64)))
    }

    fn softmax(&self, x: &Self::Tensor) -> Self::Tensor {
        B::softmax_last(x.clone())
    }

    fn layer_norm(&self, x: &Self::Tensor, name: &str, epsilon: f32) -> Self::Tensor {
        let width = *sizes(x).last().expect("x has an axis");
        let weight = self.weight(&format!("{name}.weight"), &[width]);
        let bias = self.weight(&format!("{name}.bias"), &[width]);
        B::layer_norm_last(x.clone(), weight, bias, epsilon)
    }

    fn gelu(&self, x: &Self::Tensor) -> Self::Tensor {
        B::gelu_erf(x.clone())
    }

    fn relu(&self, x: &Self::Tensor) -> Self::Tensor {
        B::relu(x.clone())
    }

    fn sigmoid(&self, x: &Self::Tensor) -> Self::Tensor {
        B::sigmoid(x.clone())
    }

    fn sin(&self, x: &Self::Tensor) -> Self::Tensor {
        B::float_sin(x.clone())
    }

    fn cos(&self, x: &Self::Tensor) -> Self::Tensor {
        B::float_cos(x.clone())
    }

    fn sqrt(&self, x: &Self::Tensor) -> Self::Tensor {
        B::float_sqrt(x.clone())
    }

    fn log(&self, x: &Self::Tensor) -> Self::Tensor {
        B::float_log(x.clone())
    }

    fn equals(&self, x: &Self::Tensor, value: f32) -> Self::Tensor {
        // Labels are whole numbers: 1 − |x − value| is 1 where equal and at most 0 elsewhere.
        let distance = B::float_abs(B::float_add_scalar(x.clone(), (-value).into()));
        B::relu(B::float_add_scalar(B::float_neg(distance), 1.0_f32.into()))
    }

    fn max(&self, x: &Self::Tensor, axis: usize) -> Self::Tensor {
        B::float_max_dim(x.clone(), axis)
    }

    fn sum(&self, x: &Self::Tensor, axis: usize) -> Self::Tensor {
        B::float_sum_dim(x.clone(), axis)
    }

    fn embed(&self, table: &Self::Tensor, tokens: &Self::Tokens) -> Self::Tensor {
        let rows = B::float_select(table.clone(), 0, self.indices(tokens.ids.iter().map(|&i| i64::from(i))));
        let width = sizes(table)[1];
        B::float_reshape(rows, shape(&[tokens.ids.len() / tokens.length, tokens.length, width]))
    }

    fn end_of_text(&self, tokens: &Self::Tokens) -> Self::Tensor {
        let mut mask = vec![0.0; tokens.ids.len()];
        for (ids, mask) in tokens.ids.chunks(tokens.length).zip(mask.chunks_mut(tokens.length)) {
            let largest = ids.iter().max().expect("a text has tokens");
            mask[ids
                .iter()
                .position(|id| id == largest)
                .expect("the largest is one of them")] = 1.0;
        }
        self.input(mask, &[tokens.ids.len() / tokens.length, 1, tokens.length])
    }
}
