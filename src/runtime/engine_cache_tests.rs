//! The engine cache with builders that write what they are told: no GPU, no TensorRT.
