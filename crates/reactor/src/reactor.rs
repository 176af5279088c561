//! A thread that waits for descriptors.

use std::{
    collections::HashMap,
    fmt,
    os::fd::AsRawFd,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, ThreadId},
    time::{Duration, Instant},
};

use vmlet_memory::fork::{self, Origin, ParentOnly, Watch};
use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::EventFd,
};

use crate::{ReactorError, Registration, timer::Deadlines};

/// Starts a thread of that name; it ends when the function returns.
pub type Spawner = dyn Fn(String, Box<dyn FnOnce() + Send>) -> std::io::Result<()> + Send + Sync;

/// Events taken from the kernel at once.
const BATCH: usize = 64;
/// How often who ends a reactor looks whether its thread is in somebody's code.
const AT_END: Duration = Duration::from_millis(2);
/// The tokens of the reactor's own eventfd and timerfd.
const WAKE: u64 = 0;
const ALARM: u64 = 1;

/// Something with a descriptor that can be waited for. A registration keeps it open.
pub trait Source: AsRawFd + Send + Sync {}

impl<T: AsRawFd + Send + Sync> Source for T {}

/// What a registration waits for; errors and hang-ups are always reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interest {
    /// Bytes to read.
    pub read: bool,
    /// Room to write.
    pub write: bool,
    /// Tell of what comes once, not as long as it is there.
    pub edge: bool,
}

impl Interest {
    /// Nothing but errors and hang-ups.
    pub const NONE: Interest = Interest {
        read: false,
        write: false,
        edge: false,
    };
    /// Bytes to read.
    pub const READ: Interest = Interest {
        read: true,
        ..Interest::NONE
    };
    /// Room to write.
    pub const WRITE: Interest = Interest {
        write: true,
        ..Interest::NONE
    };
    /// An eventfd that is signalled: its handler need not read it, and is called at least once after
    /// the last signal.
    pub const SIGNAL: Interest = Interest {
        read: true,
        edge: true,
        ..Interest::NONE
    };

    pub(crate) fn events(self) -> EventSet {
        let mut events = EventSet::empty();
        events.set(EventSet::IN, self.read);
        events.set(EventSet::OUT, self.write);
        events.set(EventSet::EDGE_TRIGGERED, self.edge);
        events
    }
}

/// What a descriptor is ready for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ready {
    /// There are bytes to read, or the other side ended.
    pub read: bool,
    /// There is room to write.
    pub write: bool,
    /// An error, or the other side is gone.
    pub closed: bool,
}

impl Ready {
    fn of(events: EventSet) -> Ready {
        let closed = events.intersects(EventSet::ERROR | EventSet::HANG_UP);
        Ready {
            read: events.contains(EventSet::IN),
            write: events.contains(EventSet::OUT),
            closed,
        }
    }
}

/// Called on the reactor's thread while its descriptor is ready: level-triggered, so a handler takes
/// what made it ready, or is called again (but for [`Interest::SIGNAL`]). It must not block: others
/// wait for the same thread.
///
/// A reactor keeps its handlers alive: one that leads back to the owner of its registration holds a
/// `Weak`.
pub trait Handler: Send + Sync {
    /// The descriptor is ready.
    fn ready(&self, ready: Ready);
}

impl<F: Fn(Ready) + Send + Sync> Handler for F {
    fn ready(&self, ready: Ready) {
        self(ready);
    }
}

type Task = Box<dyn FnOnce() + Send>;

struct Table {
    handlers: HashMap<u64, Arc<dyn Handler>>,
    /// Whose handler runs now.
    running: Option<u64>,
    tasks: Vec<Task>,
    deadlines: Deadlines,
    thread: Option<ThreadId>,
    /// Tasks run now.
    in_tasks: bool,
    /// Threads that wait for a handler to return.
    waiting: usize,
}

/// What the thread and the handles share.
pub(crate) struct Shared {
    pub(crate) epoll: Epoll,
    wake: EventFd,
    table: Mutex<Table>,
    /// A handler has returned.
    returned: Condvar,
    next: AtomicU64,
    ended: AtomicBool,
    pub(crate) origin: Origin,
    _watched: [Option<Watch>; 3],
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

/// Whether the thread has let go of everything.
#[derive(Debug, Default)]
struct End {
    reached: Mutex<bool>,
    changed: Condvar,
}

/// A thread that waits for descriptors and calls their handlers. It ends when the last handle is
/// dropped: that drop waits for it, unless a handler runs, which may need what its caller holds.
#[derive(Debug)]
pub struct Reactor {
    pub(crate) shared: Arc<ParentOnly<Shared>>,
    end: Arc<End>,
}

impl Reactor {
    /// Starts a thread called `name` by `spawn`.
    pub fn start(name: &str, spawn: &Spawner) -> Result<Arc<Reactor>, ReactorError> {
        let shared = Arc::new(ParentOnly::new(Shared::new()?));
        let (body, end) = (Arc::clone(&shared), Arc::<End>::default());
        let ended = Arc::clone(&end);
        let life = move || {
            body.run();
            drop(body);
            *ended.reached.lock().unwrap_or_else(PoisonError::into_inner) = true;
            ended.changed.notify_all();
        };
        spawn(name.to_owned(), Box::new(life)).map_err(ReactorError::call("starting a thread"))?;
        Ok(Arc::new(Reactor { shared, end }))
    }

    /// Calls `handler` whenever `source` is ready, until the registration is dropped.
    pub fn add(
        &self,
        source: Arc<dyn Source>,
        interest: Interest,
        handler: Arc<dyn Handler>,
    ) -> Result<Registration, ReactorError> {
        self.check()?;
        let token = self.shared.insert(handler);
        let event = EpollEvent::new(interest.events(), token);
        let fd = source.as_raw_fd();
        if let Err(error) = self.shared.epoll.ctl(ControlOperation::Add, fd, event) {
            self.shared.remove(token);
            return Err(ReactorError::call("epoll_ctl")(error));
        }
        Ok(Registration::new(Arc::clone(&self.shared), token, source))
    }

    /// Runs `task` on the reactor's thread, after what runs there now.
    pub fn post(&self, task: impl FnOnce() + Send + 'static) -> Result<(), ReactorError> {
        self.check()?;
        self.shared.lock().tasks.push(Box::new(task));
        self.shared.wake();
        Ok(())
    }

    /// Whether the caller is the reactor's thread.
    pub fn is_here(&self) -> bool {
        self.check().is_ok() && self.shared.is_here()
    }

    pub(crate) fn check(&self) -> Result<(), ReactorError> {
        let here = self.shared.origin.is_here();
        here.then_some(()).ok_or(ReactorError::Forked)
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        if self.check().is_ok() {
            self.shared.ended.store(true, Ordering::Release);
            self.shared.wake();
            self.wait();
        }
    }
}

impl Reactor {
    fn wait(&self) {
        let mut reached = self
            .end
            .reached
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        while !*reached && !self.shared.is_busy() {
            let waited = self.end.changed.wait_timeout(reached, AT_END);
            reached = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn new() -> Result<Shared, ReactorError> {
        let epoll = Epoll::new().map_err(ReactorError::call("epoll_create1"))?;
        let wake = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)
            .map_err(ReactorError::call("eventfd"))?;
        let deadlines = Deadlines::new().map_err(ReactorError::call("timerfd_create"))?;
        let own = [(wake.as_raw_fd(), WAKE), (deadlines.as_raw_fd(), ALARM)];
        for (fd, token) in own {
            let event = EpollEvent::new(EventSet::IN, token);
            epoll
                .ctl(ControlOperation::Add, fd, event)
                .map_err(ReactorError::call("epoll_ctl"))?;
        }
        let watched = [epoll.as_raw_fd(), own[0].0, own[1].0].map(fork::watch_fd);
        let table = Table {
            handlers: HashMap::new(),
            running: None,
            tasks: Vec::new(),
            deadlines,
            thread: None,
            in_tasks: false,
            waiting: 0,
        };
        Ok(Shared {
            epoll,
            wake,
            table: Mutex::new(table),
            returned: Condvar::new(),
            next: AtomicU64::new(ALARM + 1),
            ended: AtomicBool::new(false),
            origin: Origin::here(),
            _watched: watched,
        })
    }

    /// Whether the thread is, or may be, in somebody's code.
    fn is_busy(&self) -> bool {
        let table = self.lock();
        let here = table.thread == Some(thread::current().id());
        here || table.running.is_some() || table.in_tasks
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An eventfd that is full wakes too.
    fn wake(&self) {
        let _ = self.wake.write(1);
    }

    fn is_here(&self) -> bool {
        self.lock().thread == Some(thread::current().id())
    }

    fn run(&self) {
        self.lock().thread = Some(thread::current().id());
        let mut events = [EpollEvent::default(); BATCH];
        while !self.ended.load(Ordering::Acquire) {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::error!(target: "vmlet.reactor", "an event loop ends: {error}");
                    return;
                }
            };
            for event in events.iter().take(count) {
                match event.data() {
                    WAKE => self.run_tasks(),
                    ALARM => self.run_timers(),
                    token => self.call(token, Ready::of(event.event_set())),
                }
            }
        }
    }

    fn run_timers(&self) {
        let due = self.lock().deadlines.take_due();
        due.into_iter()
            .for_each(|token| self.call(token, Ready::default()));
    }

    pub(crate) fn set_deadline(&self, token: u64, at: Option<Instant>) {
        self.lock().deadlines.set(token, at);
    }

    /// A new handler's token.
    pub(crate) fn insert(&self, handler: Arc<dyn Handler>) -> u64 {
        let token = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().handlers.insert(token, handler);
        token
    }

    fn run_tasks(&self) {
        let _ = self.wake.read();
        // Outside the loop's head, where the lock would be held for all of it.
        let mut table = self.lock();
        let tasks = std::mem::take(&mut table.tasks);
        table.in_tasks = true;
        drop(table);
        for task in tasks {
            guarded(task);
        }
        self.lock().in_tasks = false;
    }

    /// Calls a handler, if its registration has not ended.
    fn call(&self, token: u64, ready: Ready) {
        let mut table = self.lock();
        let Some(handler) = table.handlers.get(&token).cloned() else {
            return;
        };
        table.running = Some(token);
        drop(table);
        let whole = guarded(|| handler.ready(ready));
        // Before the registration counts as quiet: the handler may own what goes with it.
        drop(handler);
        let mut table = self.lock();
        table.running = None;
        let gone = (!whole).then(|| table.handlers.remove(&token));
        let waited_for = table.waiting > 0;
        drop(table);
        // A system call, even where nobody waits.
        if waited_for {
            self.returned.notify_all();
        }
        drop(gone);
    }

    /// Ends a registration; when this returns, its handler does not run and never will. On the
    /// reactor's own thread the call in progress is the caller's own and goes on.
    pub(crate) fn remove(&self, token: u64) {
        let mut table = self.lock();
        let handler = table.handlers.remove(&token);
        if table.thread != Some(thread::current().id()) {
            table.waiting += 1;
            while table.running == Some(token) {
                let woken = self.returned.wait(table);
                table = woken.unwrap_or_else(PoisonError::into_inner);
            }
            table.waiting -= 1;
        }
        drop(table);
        drop(handler);
    }
}

/// Runs `body`; false if it panicked. One that did must not take everybody else's thread along.
fn guarded(body: impl FnOnce()) -> bool {
    let result = catch_unwind(AssertUnwindSafe(body));
    if result.is_err() {
        log::error!(target: "vmlet.reactor", "a handler panicked and is not called again");
    }
    result.is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    pub(crate) fn spawn(name: String, body: Box<dyn FnOnce() + Send>) -> std::io::Result<()> {
        thread::Builder::new().name(name).spawn(body).map(drop)
    }

    fn bell() -> Arc<EventFd> {
        Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())
    }

    #[test]
    fn a_handler_is_called_while_its_descriptor_is_ready() {
        let reactor = Reactor::start("test", &spawn).unwrap();
        let (fd, (called, calls)) = (bell(), mpsc::channel());
        let read = Arc::clone(&fd);
        let handler = move |ready: Ready| {
            assert!(ready.read);
            called.send(read.read().unwrap()).unwrap();
        };
        let source: Arc<dyn Source> = Arc::<EventFd>::clone(&fd);
        let registration = reactor.add(source, Interest::READ, Arc::new(handler));
        fd.write(3).unwrap();
        assert_eq!(calls.recv(), Ok(3));
        fd.write(4).unwrap();
        assert_eq!(calls.recv(), Ok(4));
        drop(registration.unwrap());
        fd.write(5).unwrap();
        assert!(calls.recv().is_err(), "the handler is gone");
    }

    #[test]
    fn a_signal_is_told_once_and_need_not_be_read() {
        let reactor = Reactor::start("test", &spawn).unwrap();
        let (fd, (called, calls)) = (bell(), mpsc::channel());
        let handler = move |ready: Ready| called.send(ready.read).unwrap();
        let source: Arc<dyn Source> = Arc::<EventFd>::clone(&fd);
        fd.write(1).unwrap();
        let registration = reactor.add(source, Interest::SIGNAL, Arc::new(handler));
        assert_eq!(calls.recv(), Ok(true), "one from before counts");
        fd.write(1).unwrap();
        assert_eq!(calls.recv(), Ok(true));
        let pause = Duration::from_millis(20);
        assert!(
            calls.recv_timeout(pause).is_err(),
            "the eventfd still has its count"
        );
        drop(registration.unwrap());
    }

    #[test]
    fn a_dropped_registration_waits_for_the_call_in_progress() {
        let reactor = Reactor::start("test", &spawn).unwrap();
        let (entered, in_handler) = mpsc::channel();
        let done = Arc::new(AtomicBool::new(false));
        let set = Arc::clone(&done);
        let handler = move |_: Ready| {
            let _ = entered.send(());
            thread::sleep(std::time::Duration::from_millis(20));
            set.store(true, Ordering::Release);
        };
        let fd = bell();
        let source: Arc<dyn Source> = Arc::<EventFd>::clone(&fd);
        let registration = reactor.add(source, Interest::READ, Arc::new(handler));
        fd.write(1).unwrap();
        in_handler.recv().unwrap();
        drop(registration.unwrap());
        assert!(done.load(Ordering::Acquire));
    }

    #[test]
    fn a_handler_can_drop_its_own_registration() {
        let reactor = Reactor::start("test", &spawn).unwrap();
        let (fd, slot) = (bell(), Arc::new(Mutex::new(None::<Registration>)));
        let (own, (called, calls)) = (Arc::clone(&slot), mpsc::channel());
        let handler = move |_: Ready| {
            own.lock().unwrap().take();
            called.send(()).unwrap();
        };
        let source: Arc<dyn Source> = Arc::<EventFd>::clone(&fd);
        let made = reactor.add(source, Interest::READ, Arc::new(handler));
        *slot.lock().unwrap() = Some(made.unwrap());
        fd.write(1).unwrap();
        assert_eq!(calls.recv(), Ok(()));
        assert!(
            calls.recv().is_err(),
            "level-triggered, and not called again"
        );
    }

    #[test]
    fn a_handler_that_panics_leaves_the_others_their_thread() {
        let reactor = Reactor::start("test", &spawn).unwrap();
        let fd = bell();
        let source: Arc<dyn Source> = Arc::<EventFd>::clone(&fd);
        let wrong = reactor.add(source, Interest::READ, Arc::new(|_: Ready| panic!("test")));
        fd.write(1).unwrap();
        let (sent, tasks) = mpsc::channel();
        reactor.post(move || sent.send(()).unwrap()).unwrap();
        assert_eq!(tasks.recv(), Ok(()));
        drop(wrong);
    }

    #[test]
    fn tasks_run_on_the_reactors_thread_in_order() {
        let reactor = Reactor::start("test", &spawn).unwrap();
        let (sent, tasks) = mpsc::channel();
        for number in 0..3 {
            let (sent, here) = (sent.clone(), Arc::downgrade(&reactor));
            let task = move || {
                let inside = here.upgrade().is_some_and(|reactor| reactor.is_here());
                sent.send((number, inside)).unwrap();
            };
            reactor.post(task).unwrap();
        }
        let all: Vec<_> = tasks.iter().take(3).collect();
        assert_eq!(all, [(0, true), (1, true), (2, true)]);
        assert!(!reactor.is_here());
    }

    #[test]
    fn a_timer_runs_out_once_for_each_time_it_is_armed() {
        let reactor = Reactor::start("test", &spawn).unwrap();
        let (sent, due) = mpsc::channel();
        let timer = reactor.timer(move || sent.send(()).unwrap()).unwrap();
        for _ in 0..2 {
            timer.arm(Duration::from_millis(1));
            assert_eq!(due.recv(), Ok(()));
        }
        assert_eq!(due.try_recv(), Err(mpsc::TryRecvError::Empty));
        timer.arm(Duration::from_secs(3600));
        drop(timer);
        assert!(due.recv().is_err(), "the function is gone");
    }

    #[test]
    fn a_timer_that_is_armed_later_and_runs_out_sooner_wakes_the_thread_first() {
        let reactor = Reactor::start("test", &spawn).unwrap();
        let (sent, due) = mpsc::channel();
        let timers = ["late", "soon", "never"].map(|name| {
            let sent = sent.clone();
            reactor.timer(move || sent.send(name).unwrap()).unwrap()
        });
        timers[2].arm(Duration::from_secs(3600));
        timers[0].arm(Duration::from_millis(500));
        timers[1].arm(Duration::from_millis(1));
        let limit = Duration::from_secs(20);
        assert_eq!(due.recv_timeout(limit), Ok("soon"));
        assert_eq!(due.recv_timeout(limit), Ok("late"));
    }

    #[test]
    fn the_thread_ends_with_the_last_handle() {
        let (ended, end) = mpsc::channel::<()>();
        let spawn = move |name, body: Box<dyn FnOnce() + Send>| {
            let ended = ended.clone();
            spawn(
                name,
                Box::new(move || {
                    body();
                    drop(ended);
                }),
            )
        };
        let reactor = Reactor::start("test", &spawn).unwrap();
        drop(spawn);
        drop(reactor);
        assert!(end.recv().is_err());
    }
}
