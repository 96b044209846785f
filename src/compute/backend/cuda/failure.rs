//! Errors of the driver and of cuBLAS.

use candle_core::cuda_backend::cudarc::cublaslt::{result as cublaslt, sys as cublaslt_sys};
use candle_core::cuda_backend::cudarc::driver::{DriverError, sys};

use crate::Error;

/// An error of the driver.
pub(super) fn failed(error: DriverError) -> Error {
    if error.0 == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return lack();
    }
    Error::internal("cuda", error)
}

/// An error of cuBLAS.
pub(super) fn blas_failed(error: cublaslt::CublasError) -> Error {
    if error.0 == cublaslt_sys::cublasStatus_t::CUBLAS_STATUS_ALLOC_FAILED {
        return lack();
    }
    Error::internal("cublas", format!("{error:?}"))
}

fn lack() -> Error {
    Error::DeviceMemory { device: String::new(), what: "a batch".into(), needed: None, free: None }
}
