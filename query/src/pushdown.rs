//! DataFusion's physical filter pushdown, left out where it gives wrong answers.
//!
//! Below an outer join it takes a filter over both sides' columns of one name for one over a single
//! side (DataFusion 55: apache/datafusion#25244 and others; mended upstream by #25259). The logical
//! pushdown, which has done what can be done at an outer join before, is not concerned.

use std::sync::Arc;

use datafusion::common::JoinType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::TreeNode;
use datafusion::error::Result;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::joins::{HashJoinExec, NestedLoopJoinExec, SortMergeJoinExec};

/// The physical rules that plans go through.
pub(crate) fn rules() -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    let wrap = |rule: Arc<dyn PhysicalOptimizerRule + Send + Sync>| {
        if rule.name().starts_with("FilterPushdown") {
            Arc::new(NotBelowOuterJoins(rule))
        } else {
            rule
        }
    };
    PhysicalOptimizer::new()
        .rules
        .into_iter()
        .map(wrap)
        .collect()
}

#[derive(Debug)]
struct NotBelowOuterJoins(Arc<dyn PhysicalOptimizerRule + Send + Sync>);

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
