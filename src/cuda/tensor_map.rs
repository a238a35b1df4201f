//! Tensor maps: what the copies of the kernels for sm_90a know of their operands.

use cudarc::driver::DriverError;
use cudarc::driver::sys::{self, CUresult};

use super::driver::failed;
use super::prepare::Operand;
use crate::dtype::DType;
use crate::error::Result;

/// Elements of k in a box: 128 bytes of a 16-bit type, the span of the swizzle.
const BOX_K: u32 = 64;

/// Twin of the struct in `kernels/common/hopper.cuh`. Aligned as the newest driver API asks for, whichever is bound.
#[repr(C, align(128))]
#[derive(Clone, Copy)]
struct TensorMap([u64; 16]);

/// Twin of the struct in `kernels/common/hopper.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct TensorMaps {
    x: TensorMap,
    y: TensorMap,
}
const _: () = assert!(size_of::<TensorMaps>() == 256 && size_of::<sys::CUtensorMap>() == size_of::<TensorMap>());

/// What a kernel that copies by tensor maps takes before its parameters.
///
/// # Safety
/// The type is `repr(C)`, made of tensor maps alone, and has a twin of the same layout where the kernel is.
pub(crate) unsafe trait Maps: Copy {}

/// One operand of a kernel that copies by tensor maps: `batch` matrices of `rows` rows; a box has `box_rows` of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mapped {
    pub operand: Operand,
    pub batch: usize,
    pub rows: usize,
    pub box_rows: u32,
}

impl Mapped {
    /// The map of rows of `d` elements of a 16-bit type. What is read beyond `rows`, `d` or `batch` is 0.
    ///
    /// A host computation of the driver: nothing is enqueued, nothing of the memory is read.
    fn encode(&self, op: &'static str, dtype: DType, d: usize) -> Result<TensorMap> {
        let batch = if self.operand.batch_stride == 0 { 1 } else { self.batch };
        let strides = [self.operand.row_stride, self.operand.batch_stride];
        let boxes = [BOX_K, self.box_rows, 1];
        TensorMap::new(op, dtype, self.operand.ptr, [d, self.rows, batch], strides, boxes)
    }
}

impl TensorMap {
    /// The map of a tensor of 16-bit elements, of which those of the first extent lie beside each other; the others are
    /// `strides` elements apart. Boxes are 128 bytes long, and laid down with a swizzle of 128 bytes.
    fn new(
        op: &'static str,
        dtype: DType,
        ptr: u64,
        extents: [usize; 3],
        strides: [usize; 2],
        boxes: [u32; 3],
    ) -> Result<Self> {
        use sys::{
            CUtensorMapDataType as Type, CUtensorMapFloatOOBfill as Fill, CUtensorMapInterleave as Interleave,
            CUtensorMapL2promotion as Promotion, CUtensorMapSwizzle as Swizzle,
        };
        let data_type = match dtype {
            DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            _ => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        // A stride over an extent of 1 is never taken, but has to be well formed: beyond what it strides over.
        let size = dtype.size();
        let row = if extents[1] <= 1 { (extents[0] * size).next_multiple_of(16) } else { strides[0] * size };
        let matrix = if extents[2] <= 1 { row * extents[1] } else { strides[1] * size };
        let strides = [row as u64, matrix as u64];
        let (extents, steps) = (extents.map(|extent| extent as u64), [1; 3]);
        let mut map = std::mem::MaybeUninit::<sys::CUtensorMap>::uninit();
        // SAFETY: all arrays have an element per dimension (strides one less), and the map is written if the call succeeds.
        let code = unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                data_type,
                extents.len() as u32,
                ptr as *mut std::ffi::c_void,
                extents.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        if code != CUresult::CUDA_SUCCESS {
            return Err(failed(op, "cuTensorMapEncodeTiled", DriverError(code)));
        }
        // SAFETY: the call has succeeded.
        Ok(Self(unsafe { map.assume_init() }.opaque))
    }
}

impl TensorMaps {
    /// Both operands, with rows of `d` elements; every extent is at least 1.
    pub(crate) fn new(op: &'static str, dtype: DType, d: usize, [x, y]: [Mapped; 2]) -> Result<Self> {
        Ok(Self { x: x.encode(op, dtype, d)?, y: y.encode(op, dtype, d)? })
    }
}

/// Rows of bf16 that lie `ld` elements apart, aligned to 16 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WideRows {
    pub ptr: u64,
    pub rows: usize,
    pub d: usize,
    pub ld: usize,
}

impl WideRows {
    /// Boxes of 64 columns and `box_rows` rows.
    fn rows(&self, op: &'static str, box_rows: u32) -> Result<TensorMap> {
        let boxes = [BOX_K, box_rows, 1];
        TensorMap::new(op, DType::Bf16, self.ptr, [self.d, self.rows, 1], [self.ld, 0], boxes)
    }

    /// Boxes of 64 rows and `panels` times 64 columns, one such panel after the other. `d` is a multiple of 64: else the last
    /// panel would have what lies behind the row.
    fn panels(&self, op: &'static str, panels: u32) -> Result<TensorMap> {
        let (wide, boxes) = (BOX_K as usize, [BOX_K, BOX_K, panels]);
        TensorMap::new(op, DType::Bf16, self.ptr, [wide, self.rows, self.d / wide], [self.ld, wide], boxes)
    }

    /// Whether [`Self::panels`] can be used.
    pub(crate) const fn has_panels(&self) -> bool {
        self.d.is_multiple_of(BOX_K as usize)
    }
}

/// Twin of the struct in `kernels/pairwise_grad_hopper.cu`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct GradMaps {
    w_rows: TensorMap,
    w_cols: TensorMap,
    x: TensorMap,
    y: TensorMap,
}
const _: () = assert!(size_of::<GradMaps>() == 512);

impl GradMaps {
    /// The weights of a wave, with rows of whole tiles, and both operands, of which a block brings `panels` times 64 columns;
    /// every extent is at least 1. `rest`: rows from the weights to what they are rounded by; 0: there is none.
    pub(crate) fn new(op: &'static str, w: WideRows, rest: usize, [x, y]: [WideRows; 2], panels: u32) -> Result<Self> {
        let of = |rows: WideRows| if rows.has_panels() { rows.panels(op, panels) } else { rows.rows(op, BOX_K) };
        let (parts, boxes) = (1 + usize::from(rest > 0), [BOX_K, 2 * BOX_K, 1]);
        let w_rows = TensorMap::new(op, DType::Bf16, w.ptr, [w.d, w.rows, parts], [w.ld, rest * w.ld], boxes)?;
        let w_cols = WideRows { rows: rest + w.rows, ..w }.panels(op, 2)?;
        Ok(Self { w_rows, w_cols, x: of(x)?, y: of(y)? })
    }
}

// SAFETY: nothing but maps, in C's layout, as the kernels declare them.
unsafe impl Maps for TensorMaps {}
// SAFETY: the same.
unsafe impl Maps for GradMaps {}
