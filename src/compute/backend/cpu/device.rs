//! The CPU with one instruction set, and what its passes share.

use std::sync::atomic::{AtomicU64, Ordering};

use half::bf16;

use super::workspace::Workspace;
use crate::Result;
use crate::compute::isa::{DType, Isa};
use crate::compute::kernels::Kernels;
use crate::compute::linear::layer::{KernelSet, Linear, Matrix, WeightFormat};
use crate::compute::linear::pack::Packer;
use crate::sync::Mutex;

/// Workspaces larger than this are not kept: a single very long text would keep them.
const LARGEST_WORKSPACE: usize = 64 << 20;

/// The CPU, with one instruction set and one form of weights.
#[derive(Debug)]
pub struct Cpu {
    pub(super) packer: Packer,
    /// Of activations.
    pub(super) dtype: DType,
    pub(super) workspaces: Mutex<Vec<Workspace>>,
    pub(super) bytes: AtomicU64,
}

/// An embedding table, left in its file and in its file's number format: only rows in use are ever touched.
pub type Table = Matrix;

/// A normalisation of rows.
#[derive(Debug)]
pub struct Norm {
    pub(super) scale: Vec<f32>,
    /// Without it, an RMS normalisation; with it, a layer normalisation.
    pub(super) shift: Option<Vec<f32>>,
    pub(super) epsilon: f32,
}

impl Norm {
    /// Normalises `row` in place; `narrow` becomes the same in bf16.
    pub(super) fn apply(&self, kernels: &Kernels, row: &mut [f32], narrow: Option<&mut [u16]>) {
        if let Some(shift) = &self.shift {
            return kernels.norm(row, &self.scale, shift, self.epsilon, narrow);
        }
        kernels.rms_in_place(row, &self.scale, self.epsilon);
        if let Some(narrow) = narrow {
            narrow.iter_mut().zip(row).for_each(|(narrow, x)| *narrow = bf16::from_f32(*x).to_bits());
        }
    }
}

impl Cpu {
    /// The kernels of `isa` for plain weights in `format`, which may be a [`DType`]. An instruction set that this CPU lacks
    /// becomes [`Isa::Portable`].
    pub fn new(isa: Isa, format: impl Into<WeightFormat>) -> Self {
        let format = format.into();
        Self {
            packer: Packer::new(isa, format),
            dtype: format.activations(isa),
            workspaces: Mutex::new(Vec::new()),
            bytes: AtomicU64::new(0),
        }
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.machine().kernels.isa()
    }

    pub(super) fn machine(&self) -> &KernelSet {
        &self.packer.machine
    }

    pub(super) fn counted(&self, linear: Linear) -> Result<Linear> {
        self.bytes.fetch_add(linear.bytes(), Ordering::Relaxed);
        Ok(linear)
    }

    /// The memory of an earlier pass, if there is one.
    pub(super) fn take_workspace(&self) -> Workspace {
        self.workspaces.lock().pop().unwrap_or_default()
    }

    /// Keeps the memory of a pass for the next one.
    pub(super) fn give_workspace(&self, workspace: Workspace) {
        if workspace.bytes() <= LARGEST_WORKSPACE {
            self.workspaces.lock().push(workspace);
        }
    }
}
