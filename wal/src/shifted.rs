//! A log whose offsets count on from those of the log before it.
//!
//! Where a shard's log was lost and another one took its place (`shard adopt-log`), offsets begin
//! again at 0, and everything that remembers a position (row versions, changes of tables, commit
//! tokens, replay offsets, what is flushed) would take new records for old ones. So the shard goes
//! on to count: its positions are the log's offsets plus a shift, chosen far above every position
//! of the log before. Only this wrapper knows both.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use shoal_types::Offset;

use crate::log::{AppendReceipt, Log, LogError, LogReader, receipt_outcome};

/// `log` with `shift` added to its offsets; 0: the log itself.
#[must_use]
pub fn shifted(log: Arc<dyn Log>, shift: u64) -> Arc<dyn Log> {
    match shift {
        0 => log,
        shift => Arc::new(ShiftedLog { log, shift }),
    }
}

#[derive(Debug)]
struct ShiftedLog {
    log: Arc<dyn Log>,
    shift: u64,
}

struct ShiftedReader {
    reader: Box<dyn LogReader>,
    shift: u64,
}

fn up(offset: Offset, shift: u64) -> Offset {
    Offset(offset.0.saturating_add(shift))
}

/// Errors speak of positions, but for the place of damage, which is the log's own.
fn told(error: LogError, shift: u64) -> LogError {
    let up = |offset| up(offset, shift);
    match error {
        LogError::BelowStart { asked, start } => LogError::BelowStart {
            asked: up(asked),
            start: up(start),
        },
        LogError::LostTail { shard, asked, end } => LogError::LostTail {
            shard,
            asked: up(asked),
            end: up(end),
        },
        LogError::Damaged {
            shard,
            place,
            what,
            range,
        } => LogError::Damaged {
            shard,
            place,
            what,
            range: range.map(|(from, to)| (up(from), up(to))),
        },
        other => other,
    }
}

#[async_trait]
impl Log for ShiftedLog {
    fn append(&self, record: Bytes) -> AppendReceipt {
        let receipt = self.log.append(record);
        let (sender, shifted) = tokio::sync::oneshot::channel();
        let shift = self.shift;
        tokio::spawn(async move {
            let outcome = receipt_outcome(receipt).await;
            // The caller may not care any more.
            let _ = sender.send(outcome.map(|offset| up(offset, shift)));
        });
        shifted
    }

    async fn read(&self, from: Offset) -> Result<Box<dyn LogReader>, LogError> {
        let shift = self.shift;
        let Some(from) = from.0.checked_sub(shift) else {
            return Err(LogError::BelowStart {
                asked: from,
                start: Offset(shift),
            });
        };
        let reader = self.log.read(Offset(from)).await;
        let reader = reader.map_err(|error| told(error, shift))?;
        Ok(Box::new(ShiftedReader { reader, shift }))
    }

    async fn bounds(&self) -> Result<(Offset, Offset), LogError> {
        let (start, end) = self.log.bounds().await?;
        Ok((up(start, self.shift), up(end, self.shift)))
    }

    fn end_is_barrier(&self) -> bool {
        self.log.end_is_barrier()
    }

    fn receipts_come_first(&self) -> bool {
        self.log.receipts_come_first()
    }

    async fn trim(&self, below: Offset) -> Result<(), LogError> {
        let below = Offset(below.0.saturating_sub(self.shift));
        self.log.trim(below).await
    }

    fn retained_bytes(&self) -> u64 {
        self.log.retained_bytes()
    }

    fn held_back_bytes(&self) -> u64 {
        self.log.held_back_bytes()
    }
}

#[async_trait]
impl LogReader for ShiftedReader {
    async fn next(&mut self) -> Result<Vec<(Offset, Bytes)>, LogError> {
        let shift = self.shift;
        match self.reader.next().await {
            Ok(mut records) => {
                for (offset, _) in &mut records {
                    *offset = up(*offset, shift);
                }
                Ok(records)
            }
            Err(error) => Err(told(error, shift)),
        }
    }
}

#[cfg(test)]
mod tests {
    use shoal_types::ShardId;

    use super::*;
    use crate::log::LogStore;
    use crate::simulated::SimulatedLogStore;

    #[tokio::test]
    async fn positions_of_a_shifted_log_are_shifted_everywhere() {
        let store = SimulatedLogStore::new(1);
        let shard = ShardId::generate();
        let id = store.create(shard).await.expect("made");
        let plain = store.open(shard, id).await.expect("opens");
        let log = shifted(Arc::clone(&plain), 1000);
        assert_eq!(
            log.bounds().await.expect("bounds"),
            (Offset(1000), Offset(1001))
        );
        let appended = receipt_outcome(log.append("a".into())).await;
        assert_eq!(appended.expect("taken"), Offset(1001));
        let mut reader = log.read(Offset(1001)).await.expect("reads");
        assert_eq!(reader.next().await.expect("a")[0].0, Offset(1001));
        let below = log.read(Offset(3)).await.err();
        assert!(matches!(
            below,
            Some(LogError::BelowStart {
                start: Offset(1000),
                ..
            })
        ));
        let above = log.read(Offset(1005)).await.err();
        assert!(matches!(
            above,
            Some(LogError::LostTail {
                end: Offset(1002),
                ..
            })
        ));
        log.trim(Offset(1001)).await.expect("trimmed");
        assert_eq!(
            plain.bounds().await.expect("bounds"),
            (Offset(1), Offset(2))
        );
    }
}
