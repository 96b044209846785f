//! Products of matrices by cuBLASLt.

use std::ffi::c_void;

use candle_core::cuda_backend::cudarc::cublas::sys as cublas_sys;
use candle_core::cuda_backend::cudarc::cublaslt::{result, sys};

use super::card::LaneLease;
use super::failure::blas_failed;
use super::gemm_shape::GemmShape;
use super::memory::DeviceMemory;
use crate::Result;
use crate::compute::isa::DType;

/// The operands of a product.
pub(super) struct Operands<'a> {
    /// `[rows, inputs]`
    pub(super) x: &'a DeviceMemory,
    /// `[outputs, inputs]`
    pub(super) matrix: &'a DeviceMemory,
    /// `[outputs]`, in the format of the result.
    pub(super) bias: Option<&'a DeviceMemory>,
    /// `[rows, outputs]`
    pub(super) out: &'a DeviceMemory,
    pub(super) factor: f32,
}

fn data_type(format: DType) -> sys::cudaDataType {
    match format {
        DType::F32 => sys::cudaDataType::CUDA_R_32F,
        DType::Bf16 => sys::cudaDataType::CUDA_R_16BF,
    }
}

/// A descriptor of cuBLASLt that is freed with its scope.
struct Freed<T: Copy>(T, unsafe fn(T) -> Result<(), result::CublasError>);

impl<T: Copy> Drop for Freed<T> {
    fn drop(&mut self) {
        // SAFETY: the descriptor was made with its own function and is not used any more: descriptors are read when a
        // product is queued.
        let _ = unsafe { (self.1)(self.0) };
    }
}

fn layout(format: DType, rows: usize, columns: usize) -> Result<Freed<sys::cublasLtMatrixLayout_t>> {
    let (rows, columns) = (rows as u64, columns as u64);
    let made = result::create_matrix_layout(data_type(format), rows, columns, rows as i64);
    Ok(Freed(made.map_err(blas_failed)?, result::destroy_matrix_layout))
}

/// `out = factor * x Wᵀ + bias`, or `out += …`.
///
/// # Panics
/// If an operand is smaller than `shape` says.
///
/// # Errors
/// Errors of cuBLAS.
pub(super) fn multiply(lane: &LaneLease, shape: GemmShape, operands: &Operands<'_>) -> Result<()> {
    let GemmShape { rows, inputs, outputs, operand_type, result: format, has_bias, adds } = shape;
    let width = |format: DType| if format == DType::F32 { 4 } else { 2 };
    assert!(operands.x.bytes() >= rows * inputs * width(operand_type), "x");
    assert!(operands.matrix.bytes() >= outputs * inputs * width(operand_type), "matrix");
    assert!(operands.out.bytes() >= rows * outputs * width(format), "out");
    assert_eq!(has_bias, operands.bias.is_some(), "bias");
    assert!(operands.bias.is_none_or(|bias| bias.bytes() >= outputs * width(format)), "bias");
    if rows == 0 || outputs == 0 {
        return Ok(());
    }
    // cuBLAS counts columns first: its result is `[outputs, rows]`, the product of Wᵀ and x.
    let compute = sys::cublasComputeType_t::CUBLAS_COMPUTE_32F;
    let made = result::create_matmul_desc(compute, sys::cudaDataType::CUDA_R_32F).map_err(blas_failed)?;
    let product = Freed(made, result::destroy_matmul_desc);
    let set = |attribute, value: *const c_void, bytes: usize| {
        // SAFETY: the descriptor lives, and `value` points to as many bytes as the attribute has.
        unsafe { result::set_matmul_desc_attribute(product.0, attribute, value, bytes) }.map_err(blas_failed)
    };
    let transposed = cublas_sys::cublasOperation_t::CUBLAS_OP_T;
    set(
        sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
        (&raw const transposed).cast(),
        size_of_val(&transposed),
    )?;
    if let Some(bias) = operands.bias {
        let (epilogue, pointer) = (sys::cublasLtEpilogue_t::CUBLASLT_EPILOGUE_BIAS, bias.at(0));
        set(
            sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_EPILOGUE,
            (&raw const epilogue).cast(),
            size_of_val(&epilogue),
        )?;
        set(
            sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_BIAS_POINTER,
            (&raw const pointer).cast(),
            size_of_val(&pointer),
        )?;
    }
    let a = layout(operand_type, inputs, outputs)?;
    let b = layout(operand_type, inputs, rows)?;
    let c = layout(format, outputs, rows)?;
    let known = lane.card().plans.lock().get(&shape).copied();
    let plan = match known {
        Some(plan) => plan,
        None => {
            let made = result::create_matmul_pref().map_err(blas_failed)?;
            let preference = Freed(made, result::destroy_matmul_pref);
            let workspace = lane.workspace.bytes();
            // SAFETY: all descriptors live, and the attribute is a size.
            let found = unsafe {
                let attribute =
                    sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
                let value = (&raw const workspace).cast();
                result::set_matmul_pref_attribute(preference.0, attribute, value, size_of::<usize>())
                    .map_err(blas_failed)?;
                let handle = lane.card().blas;
                result::get_matmul_algo_heuristic(handle, product.0, a.0, b.0, c.0, c.0, preference.0)
            };
            let plan = found.map_err(blas_failed)?.algo;
            lane.card().plans.lock().insert(shape, plan);
            plan
        }
    };
    let (alpha, beta) = (operands.factor, if adds { 1.0_f32 } else { 0.0 });
    let out = operands.out.at(0);
    // SAFETY: the operands have the sizes of their layouts, which was checked above; they and the workspace belong to this
    // lane's stream, on which earlier work with them ends first. `alpha` and `beta` are read before the call returns.
    unsafe {
        result::matmul(
            lane.card().blas,
            product.0,
            (&raw const alpha).cast(),
            (&raw const beta).cast(),
            operands.matrix.at(0) as *const c_void,
            a.0,
            operands.x.at(0) as *const c_void,
            b.0,
            out as *const c_void,
            c.0,
            out as *mut c_void,
            c.0,
            &raw const plan,
            lane.workspace.at(0) as *mut c_void,
            lane.workspace.bytes(),
            lane.stream.cu_stream() as *mut _,
        )
    }
    .map_err(blas_failed)
}
