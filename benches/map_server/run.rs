//! One table: filled, asked, changed, and published from.

use std::io;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ring::hmac;

use crate::device::{Device, ETRS, Kind, SUBSCRIBERS_MAX};
use crate::messages::{
    Place, REPLY_LEN, Space, check_notify, check_reply, eid, is_publication, key, nonce_of,
    put_ack, put_register, put_request, put_subscription,
};
use crate::report::{Report, Unit};
use crate::udp::{Messages, Port, exchange};
use crate::{Args, Step};

/// Nonces of ours are below; the map-server's own begin with the time of day.
const OWN_NONCES: u64 = 1 << 48;
/// A measurement is cut into so many, killick's and the echo's in turn.
const SLICES: usize = 8;
/// Records of the larger messages.
const MANY: usize = 20;
const WATCHED: usize = 500;
const ITR: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 20);
const SUBSCRIBERS: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 30);

pub struct Run<'a> {
    args: &'a Args,
    report: &'a mut Report,
    round: usize,
    space: Space,
    /// As in the names of the figures.
    size: String,
    killick: Device,
    echo: Device,
    key: hmac::Key,
    etrs: [Port; 2],
    itr: Port,
    subscribers: Port,
    nonce: u64,
    table: Vec<Place>,
    /// Map-Notify messages to acknowledge, as acknowledgements.
    acks: Messages,
}

fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    sorted
        .get((sorted.len() * percent / 100).min(sorted.len() - 1))
        .map_or(f64::NAN, |&d| micros(d))
}

/// Sets the length of the echo's answers.
fn set_echo(port: &mut Port, reply_len: usize) -> io::Result<()> {
    let mut message = Messages::default();
    message.octets.extend_from_slice(&(reply_len as u32).to_be_bytes());
    message.end();
    exchange(port, Kind::Echo.addr(), &message, 0..1, 1, |o| Ok(o.len() == 4), || Ok(()))
        .map(|_| ())
}

impl<'a> Run<'a> {
    pub fn start(
        args: &'a Args,
        report: &'a mut Report,
        round: usize,
        space: Space,
        eids: usize,
        cpu: Option<usize>,
    ) -> io::Result<Self> {
        let killick = Device::start(Kind::Killick, cpu)?;
        let echo = Device::start(Kind::Echo, cpu)?;
        report.command(Kind::Killick, &killick.command);
        report.command(Kind::Echo, &echo.command);
        let size = match eids {
            n if n >= 1_000_000 => format!("{}m", n / 1_000_000),
            n if n >= 1000 => format!("{}k", n / 1000),
            n => n.to_string(),
        };
        let size = if space == Space::Plain { format!("plain_{size}") } else { size };
        let place = |n| Place { eid: eid(space, n), etr: 0, generation: 1 };
        let mut run = Self {
            args,
            report,
            round,
            space,
            size,
            killick,
            echo,
            key: key(),
            etrs: [Port::open(ETRS[0])?, Port::open(ETRS[1])?],
            itr: Port::open(ITR)?,
            subscribers: Port::open(SUBSCRIBERS)?,
            nonce: 0,
            table: (0..eids).map(place).collect(),
            acks: Messages::default(),
        };
        run.wait_for_devices()?;
        Ok(run)
    }

    /// What went wrong, with the end of the device's log.
    pub fn explain(&mut self, error: io::Error) -> io::Error {
        io::Error::other(format!("{error}; log: {}", self.killick.log()))
    }

    /// Until both answer.
    fn wait_for_devices(&mut self) -> io::Result<()> {
        // Of nobody: a map-server that has just started does not deny what a site should have.
        let mut ask = Messages::default();
        put_request(ITR, 1, Ipv4Addr::new(198, 51, 100, 1), false, &mut ask);
        for kind in [Kind::Killick, Kind::Echo] {
            let start = Instant::now();
            loop {
                self.killick.check_alive()?;
                self.echo.check_alive()?;
                // Refused as long as nobody listens.
                let _ = self.itr.send(kind.addr(), &ask, 0..1);
                std::thread::sleep(Duration::from_millis(20));
                if self.itr.receive(|_| ()).is_ok_and(|count| count > 0) {
                    break;
                }
                if start.elapsed() > Duration::from_secs(20) {
                    return Err(io::Error::other(format!("{} does not answer", kind.name())));
                }
            }
        }
        std::thread::sleep(Duration::from_millis(50));
        while self.itr.receive(|_| ())? > 0 {}
        Ok(())
    }

    fn add(&mut self, name: &str, unit: Unit, value: f64, echo: Option<f64>) {
        let name = format!("ms_{name}_{}", self.size);
        self.report.add(self.round, &name, unit, value, echo);
    }

    pub fn run(&mut self, is_largest: bool) -> io::Result<()> {
        self.load(is_largest)?;
        if self.args.has(Step::Resolve) {
            self.resolve(false)?;
            self.resolve(true)?;
            self.latency()?;
        }
        if self.args.has(Step::Register) {
            self.refresh("register", 1)?;
            self.refresh("register20", MANY)?;
            self.moves()?;
        }
        if self.args.has(Step::Publish) && is_largest && self.space == Space::Mobile {
            self.publish()?;
        }
        Ok(())
    }

    fn count(&self, most: usize) -> usize {
        if self.args.quick { most / 10 } else { most }
    }

    // ---- registrations --------------------------------------------------------------------

    /// Map-Registers of `places`, so many in each, of the ETR where they are.
    fn registers(&mut self, places: &[Place], each: usize) -> Messages {
        let mut messages = Messages::default();
        for places in places.chunks(each) {
            self.nonce += 1;
            put_register(&self.key, places[0].etr, self.nonce, places, &mut messages);
        }
        messages
    }

    /// Sends registers from an ETR, and acknowledges what the other one is told meanwhile. The
    /// length of an answer, and how long all took.
    fn register(
        &mut self,
        etr: usize,
        messages: &Messages,
        range: std::ops::Range<usize>,
        each: usize,
    ) -> io::Result<(usize, Duration)> {
        let [a, b] = &mut self.etrs;
        let (port, other) = if etr == 0 { (a, b) } else { (b, a) };
        let (key, acks) = (&self.key, &mut self.acks);
        let mut reply_len = 0;
        let took = exchange(
            port,
            Kind::Killick.addr(),
            messages,
            range,
            self.args.window / each.min(4),
            |octets| {
                if nonce_of(octets).is_none_or(|nonce| nonce >= OWN_NONCES) {
                    return Err(io::Error::other("the ETR that holds it is told that it does not"));
                }
                check_notify(octets, each)?;
                reply_len = reply_len.max(octets.len());
                Ok(true)
            },
            || acknowledge(other, key, acks).map(|_| ()),
        )?;
        Ok((reply_len, took))
    }

    /// Until nothing has come to be acknowledged for a while.
    fn settle(&mut self) -> io::Result<()> {
        let mut last = Instant::now();
        while last.elapsed() < Duration::from_millis(300) {
            for port in self.etrs.iter_mut().chain([&mut self.subscribers]) {
                if acknowledge(port, &self.key, &mut self.acks)? > 0 {
                    last = Instant::now();
                }
            }
        }
        Ok(())
    }

    fn load(&mut self, is_largest: bool) -> io::Result<()> {
        let before = self.killick.memory()?;
        let table = std::mem::take(&mut self.table);
        let mut took = Duration::ZERO;
        for part in table.chunks(100_000) {
            let messages = self.registers(part, MANY);
            took += self.register(0, &messages, 0..messages.len(), MANY)?.1;
        }
        self.table = table;
        self.settle()?;
        let eids = self.table.len() as f64;
        let bytes = self.killick.memory()?.saturating_sub(before) as f64 / eids;
        self.add("load20", Unit::PerSecond, eids / took.as_secs_f64(), None);
        if is_largest {
            let kind = if self.space == Space::Plain { "plain" } else { "mobile" };
            let name = format!("ms_bytes_per_eid_{kind}");
            self.report.add(self.round, &name, Unit::Bytes, bytes, None);
        }
        Ok(())
    }

    /// The same messages again, killick's and the echo's slices in turn.
    fn beside_echo(
        &mut self,
        name: &str,
        etr: usize,
        messages: &Messages,
        each: usize,
    ) -> io::Result<()> {
        let (mut ours, mut echoes) = (Duration::ZERO, Duration::ZERO);
        let (cpu, echo_cpu) = (self.killick.cpu()?, self.echo.cpu()?);
        let slice = messages.len().div_ceil(SLICES);
        for start in (0..messages.len()).step_by(slice) {
            let range = start..messages.len().min(start + slice);
            let (reply_len, took) = self.register(etr, messages, range.clone(), each)?;
            ours += took;
            let port = &mut self.etrs[etr];
            if start == 0 {
                set_echo(port, reply_len)?;
            }
            let window = self.args.window / each.min(4);
            echoes += exchange(
                port,
                Kind::Echo.addr(),
                messages,
                range,
                window,
                |_| Ok(true),
                || Ok(()),
            )?;
        }
        let (cpu, echo_cpu) = (self.killick.cpu()? - cpu, self.echo.cpu()? - echo_cpu);
        let count = messages.len() as f64;
        let rate = |took: Duration| count / took.as_secs_f64();
        self.add(name, Unit::PerSecond, rate(ours), Some(rate(echoes)));
        let (cpu, echo_cpu) = (micros(cpu) / count, micros(echo_cpu) / count);
        self.add(&format!("{name}_cpu"), Unit::Micros, cpu, Some(echo_cpu));
        Ok(())
    }

    fn sample(&self, most: usize) -> Vec<usize> {
        // Another order than the one that they were registered in.
        let len = self.table.len();
        let step = (len as f64 * 0.618) as usize | 1;
        let mut at = self.round * 7;
        (0..self.count(most).min(len))
            .map(|_| {
                at = (at + step) % len;
                at
            })
            .collect()
    }

    fn refresh(&mut self, name: &str, each: usize) -> io::Result<()> {
        let most = if each == 1 { 200_000 } else { 1_000_000 };
        let places: Vec<Place> = self.sample(most).into_iter().map(|at| self.table[at]).collect();
        let messages = self.registers(&places, each);
        self.beside_echo(name, 0, &messages, each)
    }

    /// From one ETR to the other, and back.
    fn moves(&mut self) -> io::Result<()> {
        let mut sample = self.sample(100_000);
        // Sampled twice, it would move twice in one direction.
        sample.sort_unstable();
        sample.dedup();
        for etr in [1, 0] {
            let mut places = Vec::new();
            for &at in &sample {
                let place = &mut self.table[at];
                *place = Place { etr, generation: place.generation + 1, ..*place };
                places.push(*place);
            }
            places.sort_unstable_by_key(|p| p.eid.octets()[3].reverse_bits());
            let messages = self.registers(&places, 1);
            if etr == 1 {
                self.beside_echo("move", etr, &messages, 1)?;
            } else {
                self.register(etr, &messages, 0..messages.len(), 1)?;
            }
            self.settle()?;
        }
        Ok(())
    }

    // ---- requests -------------------------------------------------------------------------

    fn requests(&self, encapsulated: bool, most: usize) -> (Messages, Vec<usize>) {
        let mut messages = Messages::default();
        let sample = self.sample(most);
        for (nonce, &at) in sample.iter().enumerate() {
            put_request(ITR, nonce as u64, self.table[at].eid, encapsulated, &mut messages);
        }
        (messages, sample)
    }

    fn resolve(&mut self, encapsulated: bool) -> io::Result<()> {
        let (messages, sample) = self.requests(encapsulated, 1_000_000);
        set_echo(&mut self.itr, REPLY_LEN)?;
        let (mut ours, mut echoes, mut done) = (Duration::ZERO, Duration::ZERO, 0);
        let (cpu, echo_cpu) = (self.killick.cpu()?, self.echo.cpu()?);
        // A small table is asked several times.
        let turns = self.count(500_000).div_ceil(messages.len());
        for _ in 0..turns {
            let slice = messages.len().div_ceil(if turns > 1 { 1 } else { SLICES });
            for start in (0..messages.len()).step_by(slice) {
                let range = start..messages.len().min(start + slice);
                done += range.len();
                let table = &self.table;
                let place = |n| sample.get(usize::try_from(n).ok()?).map(|&at| table[at]);
                let (to, window) = (Kind::Killick.addr(), self.args.window);
                let check = |o: &mut [u8]| check_reply(o, place).map(|()| true);
                ours += exchange(
                    &mut self.itr,
                    to,
                    &messages,
                    range.clone(),
                    window,
                    check,
                    || Ok(()),
                )?;
                let to = Kind::Echo.addr();
                echoes +=
                    exchange(&mut self.itr, to, &messages, range, window, |_| Ok(true), || Ok(()))?;
            }
        }
        let (cpu, echo_cpu) = (self.killick.cpu()? - cpu, self.echo.cpu()? - echo_cpu);
        let done = done as f64;
        let rate = |took: Duration| done / took.as_secs_f64();
        let name = if encapsulated { "resolve_ecm" } else { "resolve" };
        self.add(name, Unit::PerSecond, rate(ours), Some(rate(echoes)));
        let name = format!("{name}_cpu");
        self.add(&name, Unit::Micros, micros(cpu) / done, Some(micros(echo_cpu) / done));
        Ok(())
    }

    /// One at a time.
    fn latency(&mut self) -> io::Result<()> {
        let (messages, sample) = self.requests(false, 20_000);
        let mut times = [Vec::new(), Vec::new()];
        set_echo(&mut self.itr, REPLY_LEN)?;
        for at in 0..messages.len() {
            for (kind, times) in [Kind::Killick, Kind::Echo].into_iter().zip(&mut times) {
                let place = |_| sample.get(at).map(|&at| self.table[at]);
                let took = exchange(
                    &mut self.itr,
                    kind.addr(),
                    &messages,
                    at..at + 1,
                    1,
                    |octets| match kind {
                        Kind::Killick => check_reply(octets, place).map(|()| true),
                        Kind::Echo => Ok(true),
                    },
                    || Ok(()),
                )?;
                times.push(took);
            }
        }
        times.iter_mut().for_each(|times| times.sort_unstable());
        let [ours, echoes] = times;
        for percent in [50, 99] {
            let name = format!("latency_p{percent}");
            let echo = percentile(&echoes, percent);
            self.add(&name, Unit::Micros, percentile(&ours, percent), Some(echo));
        }
        Ok(())
    }

    // ---- publications ---------------------------------------------------------------------

    fn publish(&mut self) -> io::Result<()> {
        let place = |n| Place { eid: eid(Space::Watched, n), etr: 0, generation: 1 };
        let mut places: Vec<Place> = (0..WATCHED).map(place).collect();
        let messages = self.registers(&places, 1);
        self.register(0, &messages, 0..messages.len(), 1)?;
        self.settle()?;
        let mut subscribed = 0;
        for subscribers in [1, 10, SUBSCRIBERS_MAX] {
            let mut ask = Messages::default();
            (subscribed..subscribers).for_each(|n| put_subscription(SUBSCRIBERS, n, &mut ask));
            subscribed = subscribers;
            let (key, acks) = (&self.key, &mut self.acks);
            let to = Kind::Killick.addr();
            let mut heard = Messages::default();
            exchange(
                &mut self.subscribers,
                to,
                &ask,
                0..ask.len(),
                64,
                |octets| {
                    put_ack(key, octets, &mut heard)?;
                    Ok(true)
                },
                || Ok(()),
            )?;
            send_all(&mut self.subscribers, &heard)?;
            acks.clear();
            self.settle()?;
            self.publish_to(subscribers, &mut places)?;
        }
        Ok(())
    }

    fn publish_to(&mut self, subscribers: usize, places: &mut [Place]) -> io::Result<()> {
        let (mut firsts, mut lasts) = (Vec::new(), Vec::new());
        let times = self.count(4).max(1);
        let len = places.len();
        for at in (0..len * times).map(|n| n % len) {
            let Place { eid, etr, generation } = places[at];
            places[at] = Place { eid, etr: 1 - etr, generation: generation + 1 };
            let message = self.registers(&places[at..=at], 1);
            self.acks.clear();
            let start = Instant::now();
            self.etrs[1 - etr].send(Kind::Killick.addr(), &message, 0..1)?;
            let (mut first, mut got) = (None, 0);
            let (key, acks) = (&self.key, &mut self.acks);
            while got < subscribers {
                let mut failed = None;
                self.subscribers.receive(|octets| {
                    // Kept as it is, and signed when the clock has stopped.
                    acks.octets.extend_from_slice(octets);
                    acks.end();
                    if is_publication(octets, places[at]) {
                        first.get_or_insert_with(|| start.elapsed());
                        got += 1;
                    } else if octets[3] == 1 {
                        failed = Some(io::Error::other(format!("not the move: {octets:02x?}")));
                    } // else what a new subscriber is told of the others, which was slow
                })?;
                if let Some(e) = failed {
                    return Err(e);
                }
                if start.elapsed() > Duration::from_secs(10) {
                    return Err(io::Error::other(format!("{got} of {subscribers} were told")));
                }
            }
            lasts.push(start.elapsed());
            firsts.extend(first);
            let told = std::mem::take(acks);
            let mut answers = Messages::default();
            for n in 0..told.len() {
                put_ack(key, told.get(n), &mut answers)?;
            }
            send_all(&mut self.subscribers, &answers)?;
            self.drain_move(1 - etr)?;
        }
        firsts.sort_unstable();
        lasts.sort_unstable();
        let mut add = |what: &str, times: &[Duration], percent| {
            let name = format!("ms_publish_{subscribers}_{what}");
            self.report.add(self.round, &name, Unit::Micros, percentile(times, percent), None);
        };
        if subscribers == 1 {
            add("p50_us", &firsts, 50);
            add("p99_us", &firsts, 99);
        } else {
            add("first_us", &firsts, 50);
            add("last_us", &lasts, 50);
            add("last_p99_us", &lasts, 99);
        }
        Ok(())
    }

    /// The answer of a move to the new ETR, and what the old one is told.
    fn drain_move(&mut self, new: usize) -> io::Result<()> {
        let start = Instant::now();
        let (mut answered, mut told) = (false, false);
        while !answered || !told {
            answered |= self.etrs[new].receive(|_| ())? > 0;
            told |= acknowledge(&mut self.etrs[1 - new], &self.key, &mut self.acks)? > 0;
            if start.elapsed() > Duration::from_secs(10) {
                return Err(io::Error::other("a move is not confirmed to both ETRs"));
            }
        }
        // The device goes back to sleep.
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(300) {
            std::hint::spin_loop();
        }
        Ok(())
    }
}

/// Acknowledges what has come; how many that was.
fn acknowledge(port: &mut Port, key: &hmac::Key, acks: &mut Messages) -> io::Result<usize> {
    acks.clear();
    let mut failed = None;
    let count = port.receive(|octets| {
        // Answers of registers, when those are not waited for, need none.
        if nonce_of(octets).is_some_and(|nonce| nonce >= 1 << 32)
            && let Err(e) = put_ack(key, octets, acks)
        {
            failed = Some(e);
        }
    })?;
    if let Some(e) = failed {
        return Err(e);
    }
    send_all(port, acks)?;
    Ok(count)
}

fn send_all(port: &mut Port, messages: &Messages) -> io::Result<()> {
    let mut next = 0;
    while next < messages.len() {
        next += port.send(Kind::Killick.addr(), messages, next..messages.len())?;
    }
    Ok(())
}
