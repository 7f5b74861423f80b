//! Bounds-checked reading of a body, and the writers of the same small parts.

use std::sync::Arc;

use arrow_array::{Array, ArrayRef, new_null_array};
use arrow_buffer::{BooleanBuffer, Buffer};
use shoal_types::ColumnType;

use super::CodecError;

/// A place in a body, and how much memory its arrays may still take.
pub(super) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    memory_left: usize,
    /// Arrays of nothing but NULL, shared: a wide table with few columns in use has many.
    null_arrays: Vec<(ColumnType, ArrayRef)>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8], memory_bytes_max: usize) -> Self {
        Self {
            bytes,
            at: 0,
            memory_left: memory_bytes_max,
            null_arrays: Vec::new(),
        }
    }

    pub(super) fn fail(&self, what: impl Into<String>) -> CodecError {
        CodecError {
            at: self.at,
            what: what.into(),
        }
    }

    pub(super) fn remaining(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Accounts for memory about to be allocated; constant columns take none of the body.
    pub(super) fn charge(&mut self, bytes: usize) -> Result<(), CodecError> {
        match self.memory_left.checked_sub(bytes) {
            Some(left) => {
                self.memory_left = left;
                Ok(())
            }
            None => Err(self.fail("takes more memory than a body may")),
        }
    }

    pub(super) fn take(&mut self, length: usize) -> Result<&'a [u8], CodecError> {
        let found = self
            .bytes
            .get(self.at..)
            .and_then(|rest| rest.get(..length))
            .ok_or_else(|| self.fail("ends too early"))?;
        self.at += length;
        Ok(found)
    }

    pub(super) fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let mut found = [0; N];
        found.copy_from_slice(self.take(N)?);
        Ok(found)
    }

    pub(super) fn u8(&mut self) -> Result<u8, CodecError> {
        let [byte] = self.array()?;
        Ok(byte)
    }

    pub(super) fn varint(&mut self) -> Result<u64, CodecError> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7F);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.fail("a number of more than 64 bits"))
    }

    pub(super) fn varint_u32(&mut self) -> Result<u32, CodecError> {
        u32::try_from(self.varint()?).map_err(|_| self.fail("a number of more than 32 bits"))
    }

    pub(super) fn zigzag(&mut self) -> Result<i64, CodecError> {
        let value = self.varint()?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// A number of rows or series.
    pub(super) fn count(&mut self, max: usize) -> Result<usize, CodecError> {
        usize::try_from(self.varint()?)
            .ok()
            .filter(|count| *count <= max)
            .ok_or_else(|| self.fail(format!("a number of rows above {max}")))
    }

    pub(super) fn null_array(
        &mut self,
        column_type: ColumnType,
        len: usize,
    ) -> Result<ArrayRef, CodecError> {
        let known = |(t, a): &&(ColumnType, ArrayRef)| *t == column_type && a.len() == len;
        if let Some((_, array)) = self.null_arrays.iter().find(known) {
            return Ok(Arc::clone(array));
        }
        self.charge(len * 16)?;
        let array = new_null_array(&column_type.arrow(), len);
        self.null_arrays.push((column_type, Arc::clone(&array)));
        Ok(array)
    }

    pub(super) fn bitmap(&mut self, length: usize) -> Result<BooleanBuffer, CodecError> {
        self.charge(length.div_ceil(8))?;
        let bytes = self.take(length.div_ceil(8))?;
        Ok(BooleanBuffer::new(Buffer::from(bytes), 0, length))
    }
}

pub(super) fn write_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(super) fn write_zigzag(value: i64, out: &mut Vec<u8>) {
    write_varint(((value << 1) ^ (value >> 63)) as u64, out);
}

pub(super) fn write_bitmap(bits: &BooleanBuffer, out: &mut Vec<u8>) {
    let aligned = bits.sliced();
    let bytes = &aligned.as_slice()[..bits.len().div_ceil(8)];
    out.extend_from_slice(bytes);
    // The buffer's unused bits are arbitrary; equal blocks shall have equal bytes.
    if !bits.len().is_multiple_of(8)
        && let Some(last) = out.last_mut()
    {
        *last &= (1 << (bits.len() % 8)) - 1;
    }
}
