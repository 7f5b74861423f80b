//! `sum` of integers that fails where the result does not fit.
//!
//! DataFusion's wraps around silently. All else (doubles, decimals, intervals, `DISTINCT`) is its
//! own.

use std::any::type_name;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use arrow_array::cast::AsArray;
use arrow_array::types::{ArrowPrimitiveType, Int64Type, UInt64Type};
use arrow_array::{Array, ArrayRef, BooleanArray};
use arrow_schema::{DataType, FieldRef};
use datafusion::common::ScalarValue;
use datafusion::error::{DataFusionError, Result};
use datafusion::functions_aggregate::sum::Sum;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, EmitTo, GroupsAccumulator,
    ReversedUDAF, SetMonotonicity, Signature,
};
use datafusion_functions_aggregate_common::aggregate::groups_accumulator::prim_op::PrimitiveGroupsAccumulator;

use crate::QueryError;
use crate::error::Kind;

/// The function, to be registered in the place of DataFusion's.
pub(crate) fn function() -> AggregateUDF {
    AggregateUDF::from(CheckedSum(Sum::new()))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct CheckedSum(Sum);

impl AggregateUDFImpl for CheckedSum {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn signature(&self) -> &Signature {
        self.0.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.0.return_type(types)
    }

    fn accumulator(&self, args: AccumulatorArgs<'_>) -> Result<Box<dyn Accumulator>> {
        match args.return_field.data_type() {
            DataType::Int64 if !args.is_distinct => Ok(Box::new(Wide::<Int64Type>::default())),
            DataType::UInt64 if !args.is_distinct => Ok(Box::new(Wide::<UInt64Type>::default())),
            _ => self.0.accumulator(args),
        }
    }

    fn state_fields(&self, args: StateFieldsArgs<'_>) -> Result<Vec<FieldRef>> {
        self.0.state_fields(args)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs<'_>) -> bool {
        self.0.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(
        &self,
        args: AccumulatorArgs<'_>,
    ) -> Result<Box<dyn GroupsAccumulator>> {
        match args.return_field.data_type() {
            DataType::Int64 => Ok(Groups::of::<Int64Type>(i64::checked_add)),
            DataType::UInt64 => Ok(Groups::of::<UInt64Type>(u64::checked_add)),
            _ => self.0.create_groups_accumulator(args),
        }
    }

    fn create_sliding_accumulator(
        &self,
        args: AccumulatorArgs<'_>,
    ) -> Result<Box<dyn Accumulator>> {
        match args.return_field.data_type() {
            DataType::Int64 | DataType::UInt64 if !args.is_distinct => self.accumulator(args),
            _ => self.0.create_sliding_accumulator(args),
        }
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        self.0.reverse_expr()
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.0.order_sensitivity()
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.0.documentation()
    }

    fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
        self.0.set_monotonicity(data_type)
    }
}

fn out_of_range() -> DataFusionError {
    DataFusionError::External(Box::new(
        QueryError::new(
            Kind::OUT_OF_RANGE,
            "bigint out of range: a sum does not fit",
        )
        .with_hint("sum(x::DECIMAL(38, 0)) holds more"),
    ))
}

/// One sum, with room for any number of values on the way.
struct Wide<T> {
    sum: i128,
    /// Values that are not NULL.
    values: u64,
    of: std::marker::PhantomData<fn() -> T>,
}

impl<T> Default for Wide<T> {
    fn default() -> Self {
        Self {
            sum: 0,
            values: 0,
            of: std::marker::PhantomData,
        }
    }
}

impl<T> fmt::Debug for Wide<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Wide<{}>({})", type_name::<T>(), self.sum)
    }
}

impl<T> Wide<T>
where
    T: ArrowPrimitiveType,
    T::Native: Into<i128>,
{
    fn of(array: &ArrayRef) -> (i128, u64) {
        let array = array.as_primitive::<T>();
        let count = (array.len() - array.null_count()) as u64;
        let sum = if count == array.len() as u64 {
            array.values().iter().map(|value| (*value).into()).sum()
        } else {
            array.iter().flatten().map(Into::into).sum::<i128>()
        };
        (sum, count)
    }
}

impl<T> Accumulator for Wide<T>
where
    T: ArrowPrimitiveType,
    T::Native: Into<i128> + TryFrom<i128>,
{
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (sum, count) = Self::of(&values[0]);
        self.sum += sum;
        self.values += count;
        Ok(())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.update_batch(states)
    }

    fn retract_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let (sum, count) = Self::of(&values[0]);
        self.sum -= sum;
        self.values -= count;
        Ok(())
    }

    fn supports_retract_batch(&self) -> bool {
        true
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        Ok(vec![self.evaluate()?])
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let sum = match self.values {
            0 => None,
            _ => Some(T::Native::try_from(self.sum).map_err(|_| out_of_range())?),
        };
        ScalarValue::new_primitive::<T>(sum, &T::DATA_TYPE)
    }

    fn size(&self) -> usize {
        size_of_val(self)
    }
}

/// A sum for each group.
struct Groups {
    inner: Box<dyn GroupsAccumulator>,
    overflowed: Arc<AtomicBool>,
}

impl Groups {
    fn of<T>(add: fn(T::Native, T::Native) -> Option<T::Native>) -> Box<dyn GroupsAccumulator>
    where
        T: ArrowPrimitiveType + Send,
    {
        let overflowed = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&overflowed);
        let add = move |sum: &mut T::Native, value: T::Native| match add(*sum, value) {
            Some(next) => *sum = next,
            None => flag.store(true, Ordering::Relaxed),
        };
        Box::new(Self {
            inner: Box::new(PrimitiveGroupsAccumulator::<T, _>::new(&T::DATA_TYPE, add)),
            overflowed,
        })
    }

    fn checked(&self) -> Result<()> {
        if self.overflowed.load(Ordering::Relaxed) {
            return Err(out_of_range());
        }
        Ok(())
    }
}

impl GroupsAccumulator for Groups {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        filter: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        self.inner.update_batch(values, groups, filter, total)?;
        self.checked()
    }

    fn merge_batch(&mut self, values: &[ArrayRef], groups: &[usize], total: usize) -> Result<()> {
        self.inner.merge_batch(values, groups, total)?;
        self.checked()
    }

    fn evaluate(&mut self, emit_to: EmitTo) -> Result<ArrayRef> {
        self.inner.evaluate(emit_to)
    }

    fn state(&mut self, emit_to: EmitTo) -> Result<Vec<ArrayRef>> {
        self.inner.state(emit_to)
    }

    fn convert_to_state(
        &self,
        values: &[ArrayRef],
        filter: Option<&BooleanArray>,
    ) -> Result<Vec<ArrayRef>> {
        self.inner.convert_to_state(values, filter)
    }

    fn size(&self) -> usize {
        self.inner.size()
    }
}
