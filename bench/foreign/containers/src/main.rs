//! Rust's `slab` and `slotmap`, asked line by line.
//!
//! Called with <container> <slots> <percent> <seed>: fills the slots, then removes records at random until so many percent
//! are live.  A line is "<operation> <repeats>", the answer "<ns> <checksum>": of one turn more, for the first is not timed.
//! It ends with its input.

use std::io::{BufRead, Write};
use std::mem::MaybeUninit;
use std::time::{Duration, Instant};

use slab::Slab;
use slotmap::{DefaultKey, SlotMap};

/// 64 bytes, of which one field is written.
struct Record {
    x: i64,
    _pad: MaybeUninit<[u8; 56]>,
}

fn record(x: i64) -> Record {
    Record { x, _pad: MaybeUninit::uninit() }
}

trait Container {
    type Key: Copy;
    fn with_capacity(slots: usize) -> Self;
    fn add(&mut self, x: i64) -> Self::Key;
    fn take(&mut self, key: Self::Key) -> i64;
    fn get(&self, key: Self::Key) -> i64;
    fn sum(&self) -> i64;
}

impl Container for Slab<Record> {
    type Key = usize;
    fn with_capacity(slots: usize) -> Self {
        Slab::with_capacity(slots)
    }
    fn add(&mut self, x: i64) -> usize {
        self.insert(record(x))
    }
    fn take(&mut self, key: usize) -> i64 {
        self.remove(key).x
    }
    fn get(&self, key: usize) -> i64 {
        self[key].x
    }
    fn sum(&self) -> i64 {
        self.iter().map(|(_, r)| r.x).sum()
    }
}

impl Container for SlotMap<DefaultKey, Record> {
    type Key = DefaultKey;
    fn with_capacity(slots: usize) -> Self {
        SlotMap::with_capacity(slots)
    }
    fn add(&mut self, x: i64) -> DefaultKey {
        self.insert(record(x))
    }
    fn take(&mut self, key: DefaultKey) -> i64 {
        self.remove(key).expect("a live key").x
    }
    fn get(&self, key: DefaultKey) -> i64 {
        self[key].x
    }
    fn sum(&self) -> i64 {
        self.values().map(|r| r.x).sum()
    }
}

/// The numbers from 0 in random order; the same generator stands in every language here.
fn shuffled(n: usize, state: &mut u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        order.swap(i, ((*state >> 33) % (i as u64 + 1)) as usize);
    }
    order
}

fn serve<C: Container>(slots: usize, percent: usize, mut seed: u64) {
    let mut container = C::with_capacity(slots);
    let all: Vec<C::Key> = (0..slots).map(|x| container.add(x as i64)).collect();
    let order = shuffled(slots, &mut seed);
    let live = slots * percent / 100;
    for &i in &order[live..] {
        container.take(all[i]);
    }
    let mut keys: Vec<C::Key> = order[..live].iter().map(|&i| all[i]).collect();
    let mut picks = shuffled(live, &mut seed);
    picks.truncate(live / 2);
    let mut next = slots as i64;

    for line in std::io::stdin().lock().lines() {
        let line = line.expect("a line");
        let (operation, repeats) = line.split_once(' ').expect("an operation and a number");
        let repeats: usize = repeats.trim().parse().expect("a number");
        let (mut taken, mut sum) = (Duration::ZERO, 0i64);
        for turn in 0..=repeats {
            let start = Instant::now();
            match operation {
                "get" => {
                    for &key in &keys {
                        sum = sum.wrapping_add(container.get(key));
                    }
                    taken += start.elapsed();
                }
                "iterate" => {
                    sum = sum.wrapping_add(container.sum());
                    taken += start.elapsed();
                }
                _ => {
                    for &j in &picks {
                        sum = sum.wrapping_add(container.take(keys[j]));
                    }
                    let between = Instant::now();
                    for &j in &picks {
                        keys[j] = container.add(next);
                        next += 1;
                    }
                    taken += if operation == "remove" { between - start } else { between.elapsed() };
                }
            }
            if turn == 0 {
                taken = Duration::ZERO;
            }
        }
        println!("{} {}", taken.as_nanos(), sum.wrapping_add(container.sum()));
        std::io::stdout().flush().expect("an open pipe");
    }
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let number = |i: usize| words[i].parse::<usize>().expect("a number");
    match words[1].as_str() {
        "slab" => serve::<Slab<Record>>(number(2), number(3), number(4) as u64),
        "slotmap" => serve::<SlotMap<DefaultKey, Record>>(number(2), number(3), number(4) as u64),
        other => panic!("{other}: no such container"),
    }
}
