//! stub
#[derive(Clone, Copy)]
pub(crate) enum Signal {
    Interrupt,
    Terminate,
}
impl Signal {
    pub(crate) fn number(self) -> i32 {
        15
    }
}
pub(crate) enum Notice {
    Notified,
    Signal(Signal),
}
pub(crate) struct SignalGuard(std::sync::Mutex<std::sync::mpsc::Receiver<()>>, std::sync::mpsc::Sender<()>);
pub(crate) struct Notifier(std::sync::mpsc::Sender<()>);
impl Notifier {
    pub(crate) fn notify(&self) {
        let _ = self.0.send(());
    }
}
impl SignalGuard {
    pub(crate) fn install(_s: &[Signal]) -> std::io::Result<Self> {
        let (a, b) = std::sync::mpsc::channel();
        Ok(SignalGuard(std::sync::Mutex::new(b), a))
    }
    pub(crate) fn notifier(&self) -> Notifier {
        Notifier(self.1.clone())
    }
    pub(crate) fn wait(&self) -> std::io::Result<Notice> {
        let _ = self.0.lock().unwrap().recv();
        Ok(Notice::Notified)
    }
}
