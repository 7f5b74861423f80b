//! DataFusion's physical rules, left out where they give wrong answers or none.
//!
//! Filter pushdown: below an outer join it takes a filter over both sides' columns of one name for
//! one over a single side (DataFusion 55: apache/datafusion#25244 and others; mended upstream by
//! #25259). The logical pushdown, which has done what can be done at an outer join before, is not
//! concerned.
//!
//! Sorts below a union: where a column stands twice (`SELECT ts, ts AS time … ORDER BY time`), the
//! sort below is by the other name, which the checker of finished plans does not see through a union
//! (apache/datafusion#16171). Such plans sort above it.

use std::sync::Arc;

use datafusion::common::JoinType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNode;
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_optimizer::sanity_checker::SanityCheckPlan;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::{HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec};
use datafusion::physical_plan::union::UnionExec;

type Rule = Arc<dyn PhysicalOptimizerRule + Send + Sync>;

/// The physical rules that plans go through.
pub(crate) fn rules() -> Vec<Rule> {
    let wrap = |rule: Rule| -> Rule {
        match rule.name() {
            name if name.starts_with("FilterPushdown") => Arc::new(NotBelowOuterJoins(rule)),
            "EnsureRequirements" => Arc::new(SoundSorts(rule)),
            _ => rule,
        }
    };
    PhysicalOptimizer::new()
        .rules
        .into_iter()
        .map(wrap)
        .collect()
}

#[derive(Debug)]
struct NotBelowOuterJoins(Rule);

impl PhysicalOptimizerRule for NotBelowOuterJoins {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if plan.exists(|node| Ok(is_outer_join(node.as_ref())))? {
            return Ok(plan);
        }
        self.0.optimize(plan, config)
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn schema_check(&self) -> bool {
        self.0.schema_check()
    }
}

#[derive(Debug)]
struct SoundSorts(Rule);

impl PhysicalOptimizerRule for SoundSorts {
    fn optimize(
        &self,
        plan: Arc<dyn ExecutionPlan>,
        config: &ConfigOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let has_union = plan.exists(|node| Ok(node.is::<UnionExec>()))?;
        let done = self.0.optimize(Arc::clone(&plan), config)?;
        if !has_union {
            return Ok(done);
        }
        match SanityCheckPlan::new().optimize(Arc::clone(&done), config) {
            Ok(_) => Ok(done),
            Err(_) => {
                let mut config = config.clone();
                config.optimizer.repartition_sorts = false;
                self.0.optimize(plan, &config)
            }
        }
    }

    fn name(&self) -> &str {
        self.0.name()
    }

    fn schema_check(&self) -> bool {
        self.0.schema_check()
    }
}

fn is_outer_join(plan: &dyn ExecutionPlan) -> bool {
    let hash = plan
        .downcast_ref::<HashJoinExec>()
        .map(|join| join.join_type);
    let merge = || {
        plan.downcast_ref::<SortMergeJoinExec>()
            .map(|join| join.join_type)
    };
    let loops = || {
        plan.downcast_ref::<NestedLoopJoinExec>()
            .map(|join| *join.join_type())
    };
    let join_type = hash.or_else(merge).or_else(loops);
    matches!(
        join_type,
        Some(JoinType::Left | JoinType::Right | JoinType::Full)
    )
}
