//! stub
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pin {
    Auto,
    Never,
    Always,
}
#[derive(Clone, Debug)]
pub(crate) struct PlacementRequest {
    pub(crate) shards: Option<usize>,
    pub(crate) cpus: Option<Vec<usize>>,
    pub(crate) pin: Pin,
}
pub(crate) struct Host;
impl Host {
    pub(crate) fn detect() -> Host {
        Host
    }
}
pub(crate) struct ShardPlacement {
    pub(crate) cpu: Option<usize>,
}
pub(crate) struct Placement {
    pub(crate) shards: Vec<ShardPlacement>,
    pub(crate) reasons: Vec<String>,
    pub(crate) oversubscribed: bool,
}
#[derive(Debug)]
pub struct CpuListError;
impl std::fmt::Display for CpuListError {
    fn fmt(&self, _f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        Ok(())
    }
}
impl std::error::Error for CpuListError {}
pub fn parse_cpu_list(_t: &str) -> Result<Vec<usize>, CpuListError> {
    Ok(vec![])
}
pub(crate) fn plan(r: &PlacementRequest, _h: &Host) -> Result<Placement, CpuListError> {
    let n = r.shards.unwrap_or(2);
    Ok(Placement {
        shards: (0..n).map(|_| ShardPlacement { cpu: None }).collect(),
        reasons: vec![],
        oversubscribed: true,
    })
}
pub(crate) fn pin_current_thread(_c: usize) -> Result<(), CpuListError> {
    Ok(())
}
