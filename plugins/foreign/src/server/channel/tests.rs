use super::*;

fn request(op: u32) -> Request<'static> {
    Request { op, count: 16, room: 64, ..Request::default() }
}

/// What the process would do: answers the request in a slot.
fn answer(channel: &Channel, slot: u32, result: i64, length: u32) {
    let head = channel.memory.head();
    if let Some(place) = head.slots.get(slot as usize) {
        place.result.store(result, SeqCst);
        place.length.store(length, SeqCst);
    }
    let answered = head.answered.0.load(SeqCst);
    head.answers[answered as usize % SLOTS].store(slot, SeqCst);
    head.answered.0.store(answered.wrapping_add(1), SeqCst);
    rustix::io::write(&channel.signal.0, &1_u64.to_ne_bytes()).unwrap();
}

fn asked_slot(channel: &Channel, nth: usize) -> u32 {
    channel.memory.head().asks[nth].load(SeqCst)
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test);
}

#[test]
fn an_answer_reaches_its_request_and_the_slot_is_used_again() {
    run(async {
        let channel = Channel::new().unwrap();
        for turn in 0..SLOTS * 3 {
            let (asked, answered) = (Arc::clone(&channel), Arc::clone(&channel));
            let asking = tokio::spawn(async move { asked.ask(request(op::GET_SIZE)).await });
            tokio::task::yield_now().await;
            let slot = asked_slot(&answered, turn % SLOTS);
            answer(&answered, slot, turn as i64, 0);
            assert_eq!(asking.await.unwrap().unwrap().result().unwrap(), turn as i64);
        }
    });
}

#[test]
fn requests_beyond_the_slots_wait_and_an_answer_that_nobody_wants_frees_its_slot() {
    run(async {
        let channel = Channel::new().unwrap();
        let ask = || {
            let channel = Arc::clone(&channel);
            tokio::spawn(async move { channel.ask(request(op::PREAD)).await.map(drop) })
        };
        let all: Vec<_> = (0..LAST_SLOT).map(|_| ask()).collect();
        while (lock(&channel.table).asked as usize) < LAST_SLOT {
            tokio::task::yield_now().await;
        }
        let last = ask();
        all.iter().for_each(tokio::task::JoinHandle::abort);
        while !all.iter().all(tokio::task::JoinHandle::is_finished) {
            tokio::task::yield_now().await;
        }
        assert_eq!(lock(&channel.table).asked as usize, LAST_SLOT);
        assert!(!last.is_finished(), "an abandoned request keeps its slot");
        answer(&channel, asked_slot(&channel, 0), 0, 0);
        while lock(&channel.table).asked as usize == LAST_SLOT {
            tokio::task::yield_now().await;
        }
        answer(&channel, asked_slot(&channel, LAST_SLOT), 0, 0);
        assert!(last.await.unwrap().is_ok());
        // The end has a slot of its own.
        let closed = channel.close().unwrap();
        answer(&channel, LAST_SLOT as u32, 0, 0);
        assert!(closed.await.is_ok());
        assert!(channel.close().is_none());
    });
}

#[test]
fn answers_that_were_not_asked_for_end_the_connection() {
    let lies: [fn(&Channel, u32); 4] = [
        |channel, slot| answer(channel, slot + 1, 0, 0),
        |channel, _| answer(channel, u32::MAX, 0, 0),
        |channel, slot| answer(channel, slot, 0, 65),
        |channel, _| {
            channel.memory.head().answered.0.store(1000, SeqCst);
            rustix::io::write(&channel.signal.0, &1_u64.to_ne_bytes()).unwrap();
        },
    ];
    for lie in lies {
        run(async {
            let channel = Channel::new().unwrap();
            let asked = Arc::clone(&channel);
            let asking = tokio::spawn(async move { asked.ask(request(op::GET_SIZE)).await.map(drop) });
            tokio::task::yield_now().await;
            lie(&channel, asked_slot(&channel, 0));
            assert_eq!(asking.await.unwrap().unwrap_err().errno(), Errno::Eio);
            assert!(channel.ask(request(op::PREAD)).await.is_err());
        });
    }
}

#[test]
fn a_stop_of_reads_leaves_writes_and_the_end_of_the_process_ends_all() {
    run(async {
        let channel = Channel::new().unwrap();
        let ask = |op| {
            let channel = Arc::clone(&channel);
            tokio::spawn(async move { channel.ask(request(op)).await.map(drop) })
        };
        let (read, write) = (ask(op::PREAD), ask(op::PWRITE));
        tokio::task::yield_now().await;
        channel.stop(Why::Stopped(StopScope::Reads));
        assert_eq!(read.await.unwrap().unwrap_err().errno(), Errno::Eshutdown);
        tokio::task::yield_now().await;
        assert!(!write.is_finished());
        channel.stop(Why::Ended);
        assert_eq!(write.await.unwrap().unwrap_err().errno(), Errno::Eio);
        assert!(channel.close().is_none());
    });
}
