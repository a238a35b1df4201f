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
        use sys::{
            CUtensorMapDataType as Type, CUtensorMapFloatOOBfill as Fill, CUtensorMapInterleave as Interleave,
            CUtensorMapL2promotion as Promotion, CUtensorMapSwizzle as Swizzle,
        };
        let data_type = match dtype {
            DType::F16 => Type::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            _ => Type::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
        };
        let repeated = self.operand.batch_stride == 0;
        let batch = if repeated { 1 } else { self.batch };
        let extents = [d as u64, self.rows as u64, batch as u64];
        // A stride over an extent of 1 is never taken, but has to be well formed: beyond what it strides over.
        let row = (d * dtype.size()).next_multiple_of(16);
        let row = if self.rows <= 1 { row } else { self.operand.row_stride * dtype.size() };
        let matrix = if batch <= 1 { row * self.rows } else { self.operand.batch_stride * dtype.size() };
        let strides = [row as u64, matrix as u64];
        let (boxes, steps) = ([BOX_K, self.box_rows, 1], [1; 3]);
        let mut map = std::mem::MaybeUninit::<sys::CUtensorMap>::uninit();
        // SAFETY: all arrays have an element per dimension (strides one less), and the map is written if the call succeeds.
        let code = unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                data_type,
                extents.len() as u32,
                self.operand.ptr as *mut std::ffi::c_void,
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
        Ok(TensorMap(unsafe { map.assume_init() }.opaque))
    }
}

impl TensorMaps {
    /// Both operands, with rows of `d` elements; every extent is at least 1.
    pub(crate) fn new(op: &'static str, dtype: DType, d: usize, [x, y]: [Mapped; 2]) -> Result<Self> {
        Ok(Self { x: x.encode(op, dtype, d)?, y: y.encode(op, dtype, d)? })
    }
}
