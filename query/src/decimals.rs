//! Numeric literals as what they meet: exact where that is a `DECIMAL`, `DOUBLE PRECISION`
//! everywhere else.
//!
//! DataFusion reads `1.1` as a double, or every such literal as a decimal. Neither will do: the
//! first loses digits on the way into a `DECIMAL` column, the second makes decimals of all
//! arithmetic and casts `DOUBLE PRECISION` columns before they are compared, so that nothing is
//! pruned by them. Here a literal stays a double, from which up to 15 digits can be had back; one
//! with more digits is read as a call of [`MARK`] with its text. [`exact`] goes over the plan
//! before anything else looks at it, makes decimals of the literals that meet decimals, and
//! doubles of all other marks.

use std::sync::{Arc, LazyLock};

use arrow_buffer::i256;
use arrow_schema::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, DFSchemaRef, ScalarValue};
use datafusion::error::{DataFusionError, Result};
use datafusion::logical_expr::expr::{Case, InList, ScalarFunction};
use datafusion::logical_expr::{
    BinaryExpr, Cast, ColumnarValue, Expr, ExprSchemable, LogicalPlan, Operator, Projection,
    ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Union, Values, Volatility, lit,
};
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

use crate::QueryError;
use crate::error::Kind;
use crate::expressions::{input_schema, map_named};
use crate::number::Number;

/// The function that stands for a number with more digits than a double keeps.
const MARK: &str = "shoal_number";

/// Digits that every double keeps.
const DOUBLE_DIGITS: usize = 15;

/// Functions whose arguments are all of one type, and their result too.
const ALIKE: &[&str] = &["coalesce", "greatest", "least", "nullif", "nvl", "ifnull"];

/// Puts [`MARK`] around numbers that a double would not keep.
pub(crate) fn mark(tokens: Vec<TokenWithSpan>) -> Vec<TokenWithSpan> {
    let is_long = |token: &TokenWithSpan, negative: bool| match &token.token {
        Token::Number(text, _) => needs_mark(text, negative),
        _ => false,
    };
    if !tokens.iter().any(|token| is_long(token, true)) {
        return tokens;
    }
    let mut out = Vec::with_capacity(tokens.len() + 8);
    let mut negative = false;
    for token in tokens {
        if is_long(&token, negative)
            && let Token::Number(text, _) = &token.token
        {
            let call = [
                Token::make_word(MARK, None),
                Token::LParen,
                Token::SingleQuotedString(text.clone()),
                Token::RParen,
            ];
            let span = token.span;
            out.extend(call.map(|token| TokenWithSpan { token, span }));
        } else {
            out.push(token.clone());
        }
        match token.token {
            Token::Whitespace(_) => {}
            other => negative = other == Token::Minus,
        }
    }
    out
}

fn needs_mark(text: &str, negative: bool) -> bool {
    if text.len() <= DOUBLE_DIGITS {
        return false;
    }
    let plain: String = text.chars().filter(|c| *c != '_').collect();
    let is_integer = if negative {
        format!("-{plain}").parse::<i64>().is_ok()
    } else {
        plain.parse::<u64>().is_ok()
    };
    !is_integer && Number::parse(text).is_some_and(|n| n.significant() > DOUBLE_DIGITS)
}

/// [`mark`] for a text.
pub(crate) fn mark_text(sql: &str) -> Result<String> {
    use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
    use datafusion::sql::sqlparser::tokenizer::Tokenizer;
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql)
        .tokenize_with_location()
        .map_err(|error| DataFusionError::SQL(Box::new(error.into()), None))?;
    let tokens = mark(tokens);
    Ok(tokens.iter().map(|t| t.token.to_string()).collect())
}

/// The text of an expression that was parsed with marks, without them.
pub(crate) fn unmark_text(sql: &str) -> String {
    let (open, close) = (format!("{MARK}('"), "')");
    let mut out = String::with_capacity(sql.len());
    let mut rest = sql;
    while let Some((before, after)) = rest.split_once(&open) {
        let Some((number, after)) = after.split_once(close) else {
            break;
        };
        out.push_str(before);
        out.push_str(number);
        rest = after;
    }
    out + rest
}

/// The function behind a mark: the number as a double, for what is left of them.
#[derive(Debug, PartialEq, Eq, Hash)]
struct MarkFunction {
    signature: Signature,
}

/// The function that [`mark`] names.
pub(crate) fn function() -> ScalarUDF {
    ScalarUDF::from(MarkFunction {
        signature: Signature::exact(vec![DataType::Utf8], Volatility::Immutable),
    })
}

impl ScalarUDFImpl for MarkFunction {
    fn name(&self) -> &str {
        MARK
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    /// Result columns are named as if the literal stood there.
    fn schema_name(&self, args: &[Expr]) -> Result<String> {
        Ok(match args {
            [Expr::Literal(text, _)] => double_of(text).schema_name().to_string(),
            _ => MARK.to_owned(),
        })
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match args.args.as_slice() {
            [ColumnarValue::Scalar(text)] => Ok(ColumnarValue::Scalar(ScalarValue::Float64(
                marked(text).map(|n| n.to_double()),
            ))),
            _ => Err(DataFusionError::Plan(format!("{MARK} takes a literal"))),
        }
    }
}

fn marked(text: &ScalarValue) -> Option<Number> {
    Number::parse(text.try_as_str()??)
}

fn double_of(text: &ScalarValue) -> Expr {
    lit(ScalarValue::Float64(marked(text).map(|n| n.to_double())))
}

static EMPTY: LazyLock<DFSchemaRef> = LazyLock::new(|| Arc::new(DFSchema::empty()));

/// Makes decimals of the literals that meet decimals. For plans as they come from the parser, with
/// parameters put in.
///
/// # Errors
/// A literal that its `DECIMAL` cannot hold, or text that is no number.
pub(crate) fn exact(plan: LogicalPlan) -> Result<LogicalPlan> {
    let plan = plan.transform_down_with_subqueries(with_definitions)?.data;
    let mut changed = false;
    let plan = plan.transform_up_with_subqueries(|node| {
        let schema = input_schema(&node).unwrap_or_else(|| Arc::clone(&EMPTY));
        let done = match node {
            LogicalPlan::Values(values) => cells(values)?,
            other => map_named(other, |expr| in_expression(expr, &schema))?,
        };
        changed |= done.transformed;
        if !changed {
            return Ok(done);
        }
        // Types below may have changed too.
        done.map_data(|node| match node {
            LogicalPlan::Union(union) => Ok(LogicalPlan::Union(Union::try_new_with_loose_types(
                union.inputs,
            )?)),
            other => other.recompute_schema(),
        })
    })?;
    Ok(plan.data)
}

/// The cells of VALUES in the types that the list has. A parameter stands there as it came.
fn cells(values: Values) -> Result<Transformed<LogicalPlan>> {
    let Values { schema, values } = values;
    let mut transformed = false;
    let values = values
        .into_iter()
        .map(|row| {
            let cells = row.into_iter().zip(schema.fields()).map(|(cell, field)| {
                let is_other = matches!(&cell, Expr::Literal(value, _)
                    if !value.is_null() && value.data_type() != *field.data_type());
                let cell = if is_other {
                    Expr::Cast(Cast::new(Box::new(cell), field.data_type().clone()))
                } else {
                    cell
                };
                let done = in_expression(cell, &EMPTY)?;
                transformed |= is_other || done.transformed;
                Ok(done.data)
            });
            cells.collect::<Result<Vec<_>>>()
        })
        .collect::<Result<Vec<_>>>()?;
    let plan = LogicalPlan::Values(Values { schema, values });
    Ok(Transformed::new_transformed(plan, transformed))
}

/// Columns that are cast to `DECIMAL` and constants one query further down: `INSERT … SELECT 1.1`.
fn with_definitions(plan: LogicalPlan) -> Result<Transformed<LogicalPlan>> {
    let LogicalPlan::Projection(projection) = &plan else {
        return Ok(Transformed::no(plan));
    };
    let defined = |expr: &Expr| -> Option<Expr> {
        let inner = match expr {
            Expr::Alias(alias) => &alias.expr,
            other => other,
        };
        let Expr::Cast(cast) = inner else {
            return None;
        };
        let Expr::Column(column) = cast.expr.as_ref() else {
            return None;
        };
        let decimal = cast.field.data_type().is_decimal();
        let value = decimal.then(|| definition(&projection.input, column))??;
        let (relation, name) = expr.qualified_name();
        let cast = Expr::Cast(Cast::new_from_field(
            Box::new(value),
            Arc::clone(&cast.field),
        ));
        Some(cast.alias_qualified(relation, name))
    };
    let exprs: Vec<Option<Expr>> = projection.expr.iter().map(defined).collect();
    if exprs.iter().all(Option::is_none) {
        return Ok(Transformed::no(plan));
    }
    let exprs = exprs
        .into_iter()
        .zip(&projection.expr)
        .map(|(new, old)| new.unwrap_or_else(|| old.clone()))
        .collect();
    let projection = Projection::try_new(exprs, Arc::clone(&projection.input))?;
    Ok(Transformed::yes(LogicalPlan::Projection(projection)))
}

/// The constant that a column of a plan is.
fn definition(plan: &LogicalPlan, column: &Column) -> Option<Expr> {
    match plan {
        LogicalPlan::Projection(projection) => {
            let at = projection.schema.maybe_index_of_column(column)?;
            match projection.expr.get(at)?.clone().unalias() {
                Expr::Column(column) => definition(&projection.input, &column),
                expr => is_constant(&expr).then_some(expr),
            }
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let at = alias.schema.maybe_index_of_column(column)?;
            definition(
                &alias.input,
                &Column::from(alias.input.schema().qualified_field(at)),
            )
        }
        LogicalPlan::Filter(_) | LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => {
            definition(plan.inputs().first()?, column)
        }
        _ => None,
    }
}

/// [`exact`] for one expression over columns of `schema`.
pub(crate) fn in_expression(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    expr.transform_up(|expr| meet(expr, schema))?
        .transform_data(|expr| expr.transform_up(unmark))
}

/// A mark that met no decimal.
fn unmark(expr: Expr) -> Result<Transformed<Expr>> {
    match mark_of(&expr) {
        Some(text) => Ok(Transformed::yes(double_of(text))),
        None => Ok(Transformed::no(expr)),
    }
}

fn mark_of(expr: &Expr) -> Option<&ScalarValue> {
    match expr {
        Expr::ScalarFunction(ScalarFunction { func, args }) if func.name() == MARK => {
            match args.as_slice() {
                [Expr::Literal(text, _)] => Some(text),
                _ => None,
            }
        }
        _ => None,
    }
}

/// One expression whose operands are done.
fn meet(expr: Expr, schema: &DFSchema) -> Result<Transformed<Expr>> {
    let type_of = |expr: &Expr| expr.get_type(schema).ok();
    let new = match &expr {
        Expr::Cast(cast) => cast_to(&cast.expr, cast.field.data_type())?,
        Expr::BinaryExpr(BinaryExpr { left, op, right }) if may_meet(left) || may_meet(right) => {
            let compared = is_comparison(*op);
            if compared || op.is_numerical_operators() {
                binary(left, *op, right, &type_of, compared)
            } else {
                None
            }
        }
        Expr::Between(between) => type_of(&between.expr).and_then(|of| {
            let low = against(&between.low, &of, true);
            let high = against(&between.high, &of, true);
            (low.is_some() || high.is_some()).then(|| {
                let mut new = between.clone();
                new.low = low.map_or(new.low, Box::new);
                new.high = high.map_or(new.high, Box::new);
                Expr::Between(new)
            })
        }),
        Expr::InList(list) if list.list.iter().any(may_meet) => in_list(list, &type_of),
        Expr::Case(case) => in_case(case, &type_of),
        Expr::ScalarFunction(call) if ALIKE.contains(&call.func.name()) => {
            alike(&call.args, &type_of).map(|args| {
                Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&call.func), args))
            })
        }
        _ => None,
    };
    Ok(match new {
        Some(new) => Transformed::yes(new),
        None => Transformed::no(expr),
    })
}

/// A constant cast to `DECIMAL`; `None`: it is neither.
fn cast_to(inner: &Expr, to: &DataType) -> Result<Option<Expr>> {
    let (DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale)) = to
    else {
        return Ok(None);
    };
    let (precision, scale) = (*precision, *scale);
    let number = match inner {
        Expr::Literal(ScalarValue::Int64(Some(n)), _) => Number::parse(&n.to_string()),
        Expr::Literal(ScalarValue::UInt64(Some(n)), _) => Number::parse(&n.to_string()),
        other => number_of(other),
    };
    let Some(number) = number else {
        let exact = is_constant(inner).then(|| own_decimals(inner)).flatten();
        return Ok(exact.map(|inner| Expr::Cast(Cast::new(Box::new(inner), to.clone()))));
    };
    match number.to_decimal(precision, scale) {
        // The type asked for, also where a narrower one could hold the value.
        Some(ScalarValue::Decimal128(Some(value), p, s))
            if matches!(to, DataType::Decimal256(..)) =>
        {
            let value = Some(i256::from_i128(value));
            Ok(Some(lit(ScalarValue::Decimal256(value, p, s))))
        }
        Some(value) => Ok(Some(lit(value))),
        None => Err(DataFusionError::External(Box::new(QueryError::new(
            Kind::OUT_OF_RANGE,
            format!("{OVERFLOW}{number} does not fit DECIMAL({precision}, {scale})"),
        )))),
    }
}

fn is_comparison(op: Operator) -> bool {
    matches!(
        op,
        Operator::Eq
            | Operator::NotEq
            | Operator::Lt
            | Operator::LtEq
            | Operator::Gt
            | Operator::GtEq
            | Operator::IsDistinctFrom
            | Operator::IsNotDistinctFrom
    )
}

/// How the message of a number that does not fit begins; the number follows.
pub(crate) const OVERFLOW: &str = "numeric field overflow: ";

fn binary(
    left: &Expr,
    op: Operator,
    right: &Expr,
    type_of: &dyn Fn(&Expr) -> Option<DataType>,
    compared: bool,
) -> Option<Expr> {
    let new_left = type_of(right).and_then(|of| against(left, &of, compared));
    let new_right = type_of(left).and_then(|of| against(right, &of, compared));
    let (left, right) = match (new_left, new_right) {
        (None, None) => return None,
        (Some(new), None) => (new, right.clone()),
        (None, Some(new)) => (left.clone(), new),
        // Two literals, one of which is a decimal already.
        (Some(new), Some(_)) if type_of(right)?.is_decimal() => (new, right.clone()),
        (Some(_), Some(new)) => (left.clone(), new),
    };
    Some(Expr::BinaryExpr(BinaryExpr::new(
        Box::new(left),
        op,
        Box::new(right),
    )))
}

fn in_list(list: &InList, type_of: &dyn Fn(&Expr) -> Option<DataType>) -> Option<Expr> {
    let of = type_of(&list.expr)?;
    let items: Vec<Option<Expr>> = list
        .list
        .iter()
        .map(|item| against(item, &of, true))
        .collect();
    items.iter().any(Option::is_some).then(|| {
        let items = items.into_iter().zip(&list.list);
        let items = items.map(|(new, old)| new.unwrap_or_else(|| old.clone()));
        Expr::InList(InList::new(
            list.expr.clone(),
            items.collect(),
            list.negated,
        ))
    })
}

fn in_case(case: &Case, type_of: &dyn Fn(&Expr) -> Option<DataType>) -> Option<Expr> {
    let mut new = case.clone();
    let mut changed = false;
    if let Some(base) = &case.expr
        && case.when_then_expr.iter().any(|(when, _)| may_meet(when))
        && let Some(of) = type_of(base)
    {
        for (when, _) in &mut new.when_then_expr {
            if let Some(exact) = against(when, &of, true) {
                **when = exact;
                changed = true;
            }
        }
    }
    let results = case.when_then_expr.iter().map(|(_, then)| then.as_ref());
    let results: Vec<Expr> = results.chain(case.else_expr.as_deref()).cloned().collect();
    if let Some(results) = alike(&results, type_of) {
        let mut results = results.into_iter();
        let thens = new.when_then_expr.iter_mut().map(|(_, then)| then);
        for (slot, exact) in thens.chain(new.else_expr.as_mut()).zip(&mut results) {
            **slot = exact;
        }
        changed = true;
    }
    changed.then_some(Expr::Case(new))
}

/// Expressions that become one type, if one of them is a `DECIMAL` and another a constant.
fn alike(exprs: &[Expr], type_of: &dyn Fn(&Expr) -> Option<DataType>) -> Option<Vec<Expr>> {
    if !exprs.iter().any(may_meet) {
        return None;
    }
    let decimal = exprs
        .iter()
        .filter(|expr| !may_meet(expr))
        .filter_map(type_of)
        .find(DataType::is_decimal)?;
    let exact = |expr: &Expr| against(expr, &decimal, false).unwrap_or_else(|| expr.clone());
    Some(exprs.iter().map(exact).collect())
}

/// A quick look: only such operands are ever changed.
fn may_meet(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(value, _) => matches!(
            value,
            ScalarValue::Float64(_)
                | ScalarValue::Decimal128(..)
                | ScalarValue::Decimal256(..)
                | ScalarValue::Utf8(_)
        ),
        Expr::Negative(inner) => may_meet(inner),
        other => is_constant(other),
    }
}

/// What a constant is where it meets a value of type `other`; `None`: it stays as it is.
fn against(expr: &Expr, other: &DataType, compared: bool) -> Option<Expr> {
    match other {
        DataType::Decimal32(precision, scale)
        | DataType::Decimal64(precision, scale)
        | DataType::Decimal128(precision, scale)
        | DataType::Decimal256(precision, scale) => match number_of(expr) {
            Some(number) if compared => number.to_compared(*precision, *scale).map(lit),
            Some(number) => number.to_own_decimal().map(lit),
            None if is_constant(expr) => own_decimals(expr),
            None => None,
        },
        // A decimal would have the other side cast.
        DataType::Float16 | DataType::Float32 | DataType::Float64 => match expr {
            Expr::Literal(ScalarValue::Decimal128(..) | ScalarValue::Decimal256(..), _) => {
                number_of(expr).map(|number| lit(number.to_double()))
            }
            _ => None,
        },
        _ => None,
    }
}

/// A decimal, and a float that its digits alone would not tell, as a cast of its text, which is read
/// back as the same value in any session.
pub(crate) fn as_text(expr: Expr) -> Transformed<Expr> {
    let Expr::Literal(value, _) = &expr else {
        return Transformed::no(expr);
    };
    let text = match value {
        ScalarValue::Float32(Some(value)) => Some(value.to_string()),
        ScalarValue::Float64(Some(value)) if !value.is_finite() => Some(value.to_string()),
        _ => None,
    };
    if let Some(text) = text {
        let cast = Cast::new(Box::new(lit(text)), value.data_type());
        return Transformed::yes(Expr::Cast(cast));
    }
    match (value.data_type().is_decimal(), number_of(&expr)) {
        (true, Some(number)) => {
            let text = Box::new(lit(number.to_string()));
            Transformed::yes(Expr::Cast(Cast::new(text, value.data_type())))
        }
        _ => Transformed::no(expr),
    }
}

/// The number that a literal is.
fn number_of(expr: &Expr) -> Option<Number> {
    match expr {
        Expr::Literal(value, _) => match value {
            ScalarValue::Float64(Some(value)) => Number::of_double(*value),
            ScalarValue::Decimal128(Some(value), _, scale) => {
                Number::of_decimal(&value.to_string(), *scale)
            }
            ScalarValue::Decimal256(Some(value), _, scale) => {
                Number::of_decimal(&value.to_string(), *scale)
            }
            ScalarValue::Utf8(Some(text)) => Number::parse(text.trim()),
            _ => None,
        },
        Expr::Negative(inner) => number_of(inner).map(Number::negated),
        other => mark_of(other).and_then(marked),
    }
}

/// Arithmetic on literals alone, not all of them whole numbers.
fn is_constant(expr: &Expr) -> bool {
    fn visit(expr: &Expr, doubles: &mut bool) -> bool {
        match expr {
            Expr::Literal(ScalarValue::Int64(Some(_)), _) => true,
            Expr::Literal(ScalarValue::Float64(Some(value)), _) => {
                *doubles = true;
                value.is_finite()
            }
            Expr::Negative(inner) => visit(inner, doubles),
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
                op.is_numerical_operators() && visit(left, doubles) && visit(right, doubles)
            }
            other => {
                *doubles |= mark_of(other).is_some();
                mark_of(other).is_some()
            }
        }
    }
    let mut doubles = false;
    visit(expr, &mut doubles) && doubles
}

/// A constant with decimals for doubles; `None`: one of them is too large.
fn own_decimals(expr: &Expr) -> Option<Expr> {
    let mut fits = true;
    let exact = expr.clone().transform_up(|expr| {
        let is_double = matches!(&expr, Expr::Literal(ScalarValue::Float64(_), _));
        if !is_double && mark_of(&expr).is_none() {
            return Ok(Transformed::no(expr));
        }
        match number_of(&expr).and_then(|number| number.to_own_decimal()) {
            Some(value) => Ok(Transformed::yes(lit(value))),
            None => {
                fits = false;
                Ok(Transformed::no(expr))
            }
        }
    });
    exact.ok().map(|exact| exact.data).filter(|_| fits)
}
