//! The CPU backend with one instruction set, and the memory that its passes share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::workspace::Workspace;
use crate::Result;
use crate::compute::isa::{DType, Isa};
use crate::compute::kernels::Kernels;
use crate::compute::linear::layer::{KernelSet, Linear, Matrix, WeightFormat};
use crate::compute::linear::pack::Packer;
use crate::compute::narrow::to_bf16;
use crate::sync::Mutex;

/// Workspaces larger than this are freed after a pass, so that one very long text does not keep its memory allocated.
const LARGEST_WORKSPACE: usize = 64 << 20;

/// The CPU, with one instruction set and one weight format.
#[derive(Debug)]
pub struct Cpu {
    pub(super) packer: Packer,
    /// The format of activations.
    pub(super) dtype: DType,
    pub(super) workspaces: Mutex<Vec<Workspace>>,
    pub(super) bytes: Arc<AtomicU64>,
    /// Whether a layer has quantized weights.
    quantized: AtomicBool,
}

/// An embedding table, in the number format of its file. A large one stays in its file.
pub type Table = Matrix;

/// A normalization of rows.
#[derive(Debug)]
pub struct Norm {
    pub(super) scale: Vec<f32>,
    /// The shift of a layer normalization, or none for RMS normalization.
    pub(super) shift: Option<Vec<f32>>,
    pub(super) epsilon: f32,
}

impl Norm {
    /// Normalizes `row` in place; `narrow` gets the same values in bf16.
    pub(super) fn apply(&self, kernels: &Kernels, row: &mut [f32], narrow: Option<&mut [u16]>) {
        if let Some(shift) = &self.shift {
            return kernels.norm(row, &self.scale, shift, self.epsilon, narrow);
        }
        kernels.rms_in_place(row, &self.scale, self.epsilon);
        if let Some(narrow) = narrow {
            to_bf16(row, narrow);
        }
    }
}

impl Cpu {
    /// The CPU with the kernels of `isa`, and plain weights in `format`, which may be a [`DType`]. If this CPU lacks the
    /// instruction set, the kernels are those of [`Isa::Portable`].
    pub fn new(isa: Isa, format: impl Into<WeightFormat>) -> Self {
        let format = format.into();
        Self {
            packer: Packer::new(isa, format),
            dtype: format.activations(isa),
            workspaces: Mutex::new(Vec::new()),
            bytes: Arc::default(),
            quantized: AtomicBool::new(false),
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.kernel_set().kernels.isa()
    }

    pub(super) fn kernel_set(&self) -> &KernelSet {
        &self.packer.kernel_set
    }

    /// Counts the memory of a layer.
    pub(super) fn counted(&self, linear: Linear) -> Result<Linear> {
        self.bytes.fetch_add(linear.bytes(), Ordering::Relaxed);
        self.quantized.fetch_or(linear.is_quantized(), Ordering::Relaxed);
        Ok(linear)
    }

    /// Whether rows that are read are multiplied by quantized weights in another way than rows that were written.
    pub(super) fn unpacks(&self) -> bool {
        let quantized = self.quantized.load(Ordering::Relaxed);
        quantized && self.dtype == DType::Bf16 && self.kernel_set().unpack.is_some()
    }

    /// The workspace of an earlier pass, or a new one.
    pub(super) fn take_workspace(&self) -> Workspace {
        self.workspaces.lock().pop().unwrap_or_default()
    }

    /// Keeps the workspace of a pass for the next one.
    pub(super) fn give_workspace(&self, workspace: Workspace) {
        if workspace.bytes() <= LARGEST_WORKSPACE {
            self.workspaces.lock().push(workspace);
        }
    }
}
