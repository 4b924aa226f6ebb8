//! How many shards, and on which CPUs: decided once, with a reason for each decision. The one door to
//! core_affinity and num_cpus. Starts no threads.
//!
//! The kernel shrinks affinity masks silently and refuses CPUs outside the cpuset, and CPU numbers need not
//! begin at 0: so only what the mask names is used, and a pin is read back.

use std::error::Error;
use std::fmt;
use std::fs;
use std::io;

use core_affinity::CoreId;

/// What the user asked for; `None` leaves it to us.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct PlacementRequest {
    pub(crate) shards: Option<usize>,
    /// Used in this order, from the beginning again when there are more shards.
    pub(crate) cpus: Option<Vec<usize>>,
    pub(crate) pin: Pin,
}

/// Whether each shard's thread is bound to one CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pin {
    /// Unless it makes no sense here. CPUs that were named are pinned to in any case.
    #[default]
    Auto,
    Never,
    Always,
}

/// What this process may use of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    /// sched_getaffinity(2), ascending; `None` if it cannot be read.
    pub(crate) affinity_mask: Option<Vec<usize>>,
    /// The cgroup's cpuset, ascending; `None` if there is none.
    pub(crate) cpuset: Option<Vec<usize>>,
    /// The tightest quota of the cgroup and those above it.
    pub(crate) quota: Option<CpuQuota>,
    /// What num_cpus counts, for when there is no mask.
    pub(crate) cpu_count: usize,
}

/// CPU time per period, as the kernel's scheduler grants it to a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CpuQuota {
    pub(crate) quota_us: u64,
    pub(crate) period_us: u64,
}

/// Where the shards go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) shards: Vec<ShardPlacement>,
    /// One sentence per decision, for the start-up block.
    pub(crate) reasons: Vec<String>,
    /// Shards have less than a CPU each: spinning would take time from one another.
    pub(crate) oversubscribed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShardPlacement {
    /// `None`: wherever the kernel likes, within the mask.
    pub(crate) cpu: Option<usize>,
}

/// A request that cannot be met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PlacementError {
    NoShards,
    TooManyShards {
        shards: usize,
    },
    NoCpus,
    /// The CPU was named, but this process may not use it.
    CpuNotAllowed {
        cpu: usize,
        allowed: Vec<usize>,
    },
}

/// A thread that could not be pinned. It runs on, unpinned.
#[derive(Debug)]
pub(crate) enum PinError {
    /// Beyond what a mask of the C library can name.
    NoSuchCpu {
        cpu: usize,
    },
    Refused {
        cpu: usize,
        source: io::Error,
    },
    /// The kernel agreed, and the mask is something else all the same.
    NotInForce {
        cpu: usize,
        mask: Option<Vec<usize>>,
    },
}

/// Decides. Pure: the same request on the same host gives the same placement.
///
/// # Errors
/// Whatever was asked for and cannot be had is an error that names it; what was left open never is.
pub(crate) fn plan(request: &PlacementRequest, host: &Host) -> Result<Placement, PlacementError> {
    let mut reasons = Vec::new();
    let allowed = host.allowed();
    let cpus = match (&request.cpus, &allowed) {
        (Some(cpus), allowed) => {
            check_named_cpus(cpus, allowed.as_deref())?;
            cpus.clone()
        }
        (None, Some(allowed)) => allowed.clone(),
        (None, None) => (0..host.cpu_count.max(1)).collect(),
    };
    let count = shard_count(request, host, &cpus, &mut reasons)?;
    let quota_is_short = host.quota.is_some_and(|quota| !quota.covers(count));
    let distinct = {
        let mut used: Vec<usize> = cpus.iter().copied().take(count).collect();
        used.sort_unstable();
        used.dedup();
        used
    };
    if count > distinct.len() {
        let on = format_cpu_list(&distinct);
        reasons.push(format!(
            "{count} shards on {} (CPU {on}): some share a CPU",
            count_of(distinct.len(), "CPU")
        ));
    }
    let is_pinned = decide_pinning(request, host, allowed.is_some(), quota_is_short, &mut reasons);
    let shards =
        (0..count).map(|index| ShardPlacement { cpu: is_pinned.then(|| cpus[index % cpus.len()]) }).collect();
    Ok(Placement { shards, reasons, oversubscribed: count > distinct.len() || quota_is_short })
}

/// Binds the calling thread to one CPU, and looks whether it worked.
///
/// # Errors
/// As [`PinError`] says; the thread may run anywhere it could before.
pub(crate) fn pin_current_thread(cpu: usize) -> Result<(), PinError> {
    if cpu >= MASK_CPUS {
        return Err(PinError::NoSuchCpu { cpu });
    }
    if !core_affinity::set_for_current(CoreId { id: cpu }) {
        return Err(PinError::Refused { cpu, source: io::Error::last_os_error() });
    }
    match affinity_mask() {
        Some(mask) if mask == [cpu] => Ok(()),
        mask => Err(PinError::NotInForce { cpu, mask }),
    }
}

/// Reads a list of CPUs as the kernel writes them: numbers and ranges, `0-3,7`. Order and repetitions are kept.
///
/// # Errors
/// Names the part that is wrong, and where it begins.
pub fn parse_cpu_list(list: &str) -> Result<Vec<usize>, CpuListError> {
    let mut cpus = Vec::new();
    let mut position = 0;
    for part in list.split(',') {
        let error = |problem| CpuListError { part: part.trim().to_owned(), position, problem };
        let number = |text: &str| match text.trim() {
            "" => Err(error(CpuListProblem::Missing)),
            // `parse` would take a sign.
            digits if !digits.bytes().all(|byte| byte.is_ascii_digit()) => {
                Err(error(CpuListProblem::NotANumber))
            }
            digits => match digits.parse() {
                Ok(cpu) if cpu <= CPU_MAX => Ok(cpu),
                _ => Err(error(CpuListProblem::TooLarge)),
            },
        };
        match part.split_once('-') {
            None => cpus.push(number(part)?),
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(error(CpuListProblem::Backwards));
                }
                cpus.extend(first..=last);
            }
        }
        position += part.len() + 1;
    }
    Ok(cpus)
}

/// What is wrong with a list of CPUs, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuListError {
    /// The part between two commas.
    part: String,
    /// Where the part begins, in bytes.
    position: usize,
    problem: CpuListProblem,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CpuListProblem {
    Missing,
    NotANumber,
    TooLarge,
    Backwards,
}

impl Host {
    pub(crate) fn detect() -> Self {
        let read = |path: &str| fs::read_to_string(path).ok();
        let cgroups = Cgroups::find(&read);
        Host {
            affinity_mask: affinity_mask(),
            cpuset: cgroups.cpuset(&read),
            quota: cgroups.quota(&read),
            cpu_count: num_cpus::get(),
        }
    }

    /// The CPUs this process may use, or `None` if the kernel does not tell.
    fn allowed(&self) -> Option<Vec<usize>> {
        let mask = self.affinity_mask.as_ref().filter(|mask| !mask.is_empty())?;
        let both: Vec<usize> = match &self.cpuset {
            Some(cpuset) => mask.iter().copied().filter(|cpu| cpuset.contains(cpu)).collect(),
            None => return Some(mask.clone()),
        };
        // A cpuset that shares nothing with the mask is not ours: the mask is what the kernel enforces.
        Some(if both.is_empty() { mask.clone() } else { both })
    }
}

impl CpuQuota {
    /// How many CPUs the quota pays for in full.
    fn whole_cpus(self) -> usize {
        usize::try_from(self.quota_us / self.period_us.max(1)).unwrap_or(usize::MAX)
    }

    fn is_fractional(self) -> bool {
        !self.quota_us.is_multiple_of(self.period_us.max(1))
    }

    fn covers(self, cpus: usize) -> bool {
        self.whole_cpus() >= cpus
    }

    fn is_less_than(self, other: CpuQuota) -> bool {
        u128::from(self.quota_us) * u128::from(other.period_us)
            < u128::from(other.quota_us) * u128::from(self.period_us)
    }
}

impl fmt::Display for CpuQuota {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cpus = self.quota_us as f64 / self.period_us.max(1) as f64;
        write!(formatter, "CPU quota of {} CPUs", (cpus * 100.0).round() / 100.0)
    }
}

fn check_named_cpus(cpus: &[usize], allowed: Option<&[usize]>) -> Result<(), PlacementError> {
    if cpus.is_empty() {
        return Err(PlacementError::NoCpus);
    }
    let Some(allowed) = allowed else { return Ok(()) };
    match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(&cpu) => Err(PlacementError::CpuNotAllowed { cpu, allowed: allowed.to_vec() }),
        None => Ok(()),
    }
}

fn shard_count(
    request: &PlacementRequest,
    host: &Host,
    cpus: &[usize],
    reasons: &mut Vec<String>,
) -> Result<usize, PlacementError> {
    if let Some(shards) = request.shards {
        if shards == 0 {
            return Err(PlacementError::NoShards);
        }
        if shards > SHARDS_MAX {
            return Err(PlacementError::TooManyShards { shards });
        }
        reasons.push(format!("{}: asked for", count_of(shards, "shard")));
        return Ok(shards);
    }
    if request.cpus.is_some() {
        if cpus.len() > SHARDS_MAX {
            return Err(PlacementError::TooManyShards { shards: cpus.len() });
        }
        reasons.push(format!("{}: one per CPU named", count_of(cpus.len(), "shard")));
        return Ok(cpus.len());
    }
    let (mut count, mut reason) = (cpus.len(), format!("one per usable CPU ({})", format_cpu_list(cpus)));
    if host.affinity_mask.is_none() {
        reason = "one per CPU counted: the affinity mask cannot be read".to_owned();
    }
    if let Some(quota) = host.quota
        && quota.whole_cpus() < count
    {
        (count, reason) = (quota.whole_cpus().max(1), quota.to_string());
    }
    if count > SHARDS_MAX {
        (count, reason) = (SHARDS_MAX, format!("the limit; {} CPUs are usable", cpus.len()));
    }
    reasons.push(format!("{}: {reason}", count_of(count, "shard")));
    Ok(count)
}

fn decide_pinning(
    request: &PlacementRequest,
    host: &Host,
    mask_is_known: bool,
    quota_is_short: bool,
    reasons: &mut Vec<String>,
) -> bool {
    let quota = host.quota.filter(|quota| quota_is_short || quota.is_fractional());
    match (request.pin, quota) {
        (Pin::Never, _) => {
            reasons.push("not pinned: asked for".to_owned());
            false
        }
        (Pin::Auto, Some(quota)) if request.cpus.is_none() => {
            reasons.push(format!("not pinned: {quota}, so no shard has a CPU to itself"));
            false
        }
        (Pin::Auto, _) if request.cpus.is_none() && !mask_is_known => {
            reasons.push("not pinned: the affinity mask cannot be read".to_owned());
            false
        }
        (_, Some(quota)) => {
            reasons.push(format!("pinned: asked for, though there is a {quota}"));
            true
        }
        (_, None) => true,
    }
}

fn affinity_mask() -> Option<Vec<usize>> {
    let cores = core_affinity::get_core_ids()?;
    Some(cores.into_iter().map(|core| core.id).collect())
}

fn count_of(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// The reverse of [`parse_cpu_list`].
fn format_cpu_list(cpus: &[usize]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for &cpu in cpus {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == cpu => *last = cpu,
            _ => ranges.push((cpu, cpu)),
        }
    }
    let texts = ranges.into_iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        _ => format!("{first}-{last}"),
    });
    texts.collect::<Vec<_>>().join(",")
}

/// Where the kernel shows the cgroups of this process, from its own up to the topmost that can be seen
/// (cgroups(7)). Version 2 has one hierarchy, version 1 one per controller, and both may be mounted.
#[derive(Debug, Default, PartialEq, Eq)]
struct Cgroups {
    unified: Vec<String>,
    cpu: Vec<String>,
    cpuset: Vec<String>,
}

impl Cgroups {
    fn find(read: &dyn Fn(&str) -> Option<String>) -> Self {
        let memberships = read("/proc/self/cgroup").unwrap_or_default();
        let mounts = read("/proc/self/mountinfo").unwrap_or_default();
        let mut found = Cgroups::default();
        for line in mounts.lines() {
            // Two halves: `id parent dev root mount-point options [tags] - type source super-options`.
            let Some((front, back)) = line.split_once(" - ") else { continue };
            let mut front = front.split(' ').skip(3);
            let (Some(root), Some(mount_point)) = (front.next(), front.next()) else { continue };
            let mut back = back.split(' ');
            let (kind, options) = (back.next(), back.nth(1).unwrap_or_default());
            let directories = |controller| {
                membership(&memberships, controller).map(|group| directories_upward(root, mount_point, group))
            };
            match kind {
                Some("cgroup2") => found.unified = directories("").unwrap_or_default(),
                Some("cgroup") => {
                    for (controller, place) in [("cpu", &mut found.cpu), ("cpuset", &mut found.cpuset)] {
                        if options.split(',').any(|option| option == controller) {
                            *place = directories(controller).unwrap_or_default();
                        }
                    }
                }
                _ => {}
            }
        }
        found
    }

    /// The tightest quota on the way up: each of them holds.
    fn quota(&self, read: &dyn Fn(&str) -> Option<String>) -> Option<CpuQuota> {
        let unified = self.unified.iter().filter_map(|directory| {
            let limit = read(&format!("{directory}/cpu.max"))?;
            let (quota, period) = limit.trim().split_once(' ')?;
            quota_from(quota, period)
        });
        let per_controller = self.cpu.iter().filter_map(|directory| {
            let quota = read(&format!("{directory}/cpu.cfs_quota_us"))?;
            let period = read(&format!("{directory}/cpu.cfs_period_us"))?;
            quota_from(&quota, &period)
        });
        unified.chain(per_controller).reduce(|one, other| if other.is_less_than(one) { other } else { one })
    }

    /// The cpuset in force: that of the lowest group that says.
    fn cpuset(&self, read: &dyn Fn(&str) -> Option<String>) -> Option<Vec<usize>> {
        let unified = self.unified.iter().map(|directory| format!("{directory}/cpuset.cpus.effective"));
        let per_controller = self.cpuset.iter().map(|directory| format!("{directory}/cpuset.effective_cpus"));
        let older = self.cpuset.iter().map(|directory| format!("{directory}/cpuset.cpus"));
        unified.chain(per_controller).chain(older).find_map(|file| parse_cpu_list(&read(&file)?).ok())
    }
}

/// The group this process is in, by /proc/self/cgroup: lines of `id:controllers:group`.
fn membership<'text>(memberships: &'text str, controller: &str) -> Option<&'text str> {
    memberships.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, group) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == controller).then_some(group)
    })
}

/// The directory of `group`, and those above it that the mount shows.
fn directories_upward(root: &str, mount_point: &str, group: &str) -> Vec<String> {
    let below = group
        .strip_prefix(root.trim_end_matches('/'))
        .filter(|rest| rest.is_empty() || rest.starts_with('/'));
    // In a container the mount may begin at a group that this process cannot name: then it is the mount itself.
    let mut rest = below.filter(|rest| !rest.starts_with("/..")).unwrap_or_default().trim_end_matches('/');
    let mut directories = Vec::new();
    loop {
        directories.push(format!("{mount_point}{rest}"));
        let Some((above, _)) = rest.rsplit_once('/') else { return directories };
        rest = above;
    }
}

/// `None` if there is no limit.
fn quota_from(quota_us: &str, period_us: &str) -> Option<CpuQuota> {
    let (quota_us, period_us) = (quota_us.trim().parse().ok()?, period_us.trim().parse().ok()?);
    (quota_us > 0 && period_us > 0).then_some(CpuQuota { quota_us, period_us })
}

impl fmt::Display for PlacementError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PlacementError::NoShards => formatter.write_str("0 shards were asked for: at least 1 is needed"),
            PlacementError::TooManyShards { shards } => {
                write!(formatter, "{shards} shards were asked for: at most {SHARDS_MAX} are possible")
            }
            PlacementError::NoCpus => formatter.write_str("the list of CPUs is empty"),
            PlacementError::CpuNotAllowed { cpu, allowed } => {
                let allowed = format_cpu_list(allowed);
                write!(formatter, "CPU {cpu} is not one that this process may use ({allowed})")
            }
        }
    }
}

impl Error for PlacementError {}

impl fmt::Display for PinError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PinError::NoSuchCpu { cpu } => write!(formatter, "cannot pin to CPU {cpu}: there is no such CPU"),
            PinError::Refused { cpu, source } => write!(formatter, "cannot pin to CPU {cpu}: {source}"),
            PinError::NotInForce { cpu, mask } => {
                let mask = mask.as_deref().map_or("unknown".to_owned(), format_cpu_list);
                write!(formatter, "pinning to CPU {cpu} had no effect: the affinity mask is {mask}")
            }
        }
    }
}

impl Error for PinError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            PinError::Refused { source, .. } => Some(source),
            PinError::NoSuchCpu { .. } | PinError::NotInForce { .. } => None,
        }
    }
}

impl fmt::Display for CpuListError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let CpuListError { part, position, problem } = self;
        let problem = match problem {
            CpuListProblem::Missing => "a CPU number is missing",
            CpuListProblem::NotANumber => "this is not a CPU number or a range of two",
            CpuListProblem::TooLarge => "no machine has so many CPUs",
            CpuListProblem::Backwards => "the range runs backwards",
        };
        write!(formatter, "list of CPUs, at byte {position}, \"{part}\": {problem} (as in \"0-3,7\")")
    }
}

impl Error for CpuListError {}

/// The mesh between shards grows with the square of their number.
pub(crate) const SHARDS_MAX: usize = 256;
/// CPU_SETSIZE: core_affinity cannot name more.
const MASK_CPUS: usize = 1024;
/// The most that Linux can be built for (CONFIG_NR_CPUS).
const CPU_MAX: usize = 8191;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::thread;

    use proptest::prelude::*;

    use super::*;

    fn host(mask: &[usize]) -> Host {
        Host { affinity_mask: Some(mask.to_vec()), cpuset: None, quota: None, cpu_count: mask.len() }
    }

    fn percent(percent: u64) -> Option<CpuQuota> {
        Some(CpuQuota { quota_us: percent * 1000, period_us: 100_000 })
    }

    fn cpus(placement: &Placement) -> Vec<Option<usize>> {
        placement.shards.iter().map(|shard| shard.cpu).collect()
    }

    fn anything() -> PlacementRequest {
        PlacementRequest::default()
    }

    #[test]
    fn one_pinned_shard_per_usable_cpu_whatever_their_numbers() {
        let placement = plan(&anything(), &host(&[3, 8, 9])).unwrap();
        assert_eq!(cpus(&placement), [Some(3), Some(8), Some(9)]);
        assert_eq!(placement.reasons, ["3 shards: one per usable CPU (3,8-9)"]);
        assert!(!placement.oversubscribed);
        assert_eq!(cpus(&plan(&anything(), &host(&[1])).unwrap()), [Some(1)]);
    }

    #[test]
    fn the_cpuset_narrows_the_mask_unless_they_have_nothing_in_common() {
        let narrowed = Host { cpuset: Some(vec![1, 2, 7]), ..host(&[0, 1, 2]) };
        assert_eq!(cpus(&plan(&anything(), &narrowed).unwrap()), [Some(1), Some(2)]);
        let foreign = Host { cpuset: Some(vec![7]), ..host(&[0, 1]) };
        assert_eq!(cpus(&plan(&anything(), &foreign).unwrap()), [Some(0), Some(1)]);
    }

    #[test]
    fn a_quota_bounds_the_shards_and_a_fraction_unpins_them() {
        let cases = [
            (50, vec![None], true),
            (100, vec![Some(0)], false),
            (150, vec![None], false),
            (200, vec![Some(0), Some(1)], false),
            (250, vec![None, None], false),
            (400, vec![Some(0), Some(1), Some(2), Some(3)], false),
            (4000, vec![Some(0), Some(1), Some(2), Some(3)], false),
        ];
        for (quota, expected, oversubscribed) in cases {
            let placement =
                plan(&anything(), &Host { quota: percent(quota), ..host(&[0, 1, 2, 3]) }).unwrap();
            assert_eq!(cpus(&placement), expected, "{quota} %: {:?}", placement.reasons);
            assert_eq!(placement.oversubscribed, oversubscribed, "{quota} %");
        }
        let half = plan(&anything(), &Host { quota: percent(50), ..host(&[0, 1]) }).unwrap();
        assert_eq!(
            half.reasons,
            [
                "1 shard: CPU quota of 0.5 CPUs",
                "not pinned: CPU quota of 0.5 CPUs, so no shard has a CPU to itself",
            ]
        );
    }

    #[test]
    fn more_shards_than_the_quota_pays_for_run_unpinned_unless_told_otherwise() {
        let limited = Host { quota: percent(200), ..host(&[0, 1, 2, 3]) };
        let asked = PlacementRequest { shards: Some(4), ..anything() };
        let placement = plan(&asked, &limited).unwrap();
        assert_eq!(cpus(&placement), [None; 4]);
        assert!(placement.oversubscribed);
        let always = plan(&PlacementRequest { pin: Pin::Always, ..asked.clone() }, &limited).unwrap();
        assert_eq!(cpus(&always), [Some(0), Some(1), Some(2), Some(3)]);
        assert!(always.reasons.last().unwrap().contains("quota"), "{:?}", always.reasons);
        let named = PlacementRequest { cpus: Some(vec![2, 3, 0]), ..anything() };
        assert_eq!(cpus(&plan(&named, &limited).unwrap()), [Some(2), Some(3), Some(0)]);
    }

    #[test]
    fn several_shards_may_share_a_cpu_with_a_notice() {
        let two = host(&[4, 5]);
        let crowded = plan(&PlacementRequest { shards: Some(5), ..anything() }, &two).unwrap();
        assert_eq!(cpus(&crowded), [Some(4), Some(5), Some(4), Some(5), Some(4)]);
        assert!(crowded.oversubscribed);
        assert_eq!(crowded.reasons[1], "5 shards on 2 CPUs (CPU 4-5): some share a CPU");
        let twice = plan(&PlacementRequest { cpus: Some(vec![5, 5]), ..anything() }, &two).unwrap();
        assert_eq!(cpus(&twice), [Some(5), Some(5)]);
        assert!(twice.oversubscribed);
        assert_eq!(twice.reasons[1], "2 shards on 1 CPU (CPU 5): some share a CPU");
        let fewer = plan(&PlacementRequest { shards: Some(1), cpus: Some(vec![5, 5]), pin: Pin::Auto }, &two);
        assert!(!fewer.unwrap().oversubscribed);
    }

    #[test]
    fn what_cannot_be_met_is_refused_by_name() {
        let two = host(&[4, 5]);
        let refusal = |request: PlacementRequest| plan(&request, &two).unwrap_err().to_string();
        assert_eq!(
            refusal(PlacementRequest { shards: Some(0), ..anything() }),
            "0 shards were asked for: at least 1 is needed"
        );
        assert_eq!(
            refusal(PlacementRequest { shards: Some(257), ..anything() }),
            "257 shards were asked for: at most 256 are possible"
        );
        assert_eq!(
            refusal(PlacementRequest { cpus: Some(vec![4; 300]), ..anything() }),
            "300 shards were asked for: at most 256 are possible"
        );
        assert_eq!(
            refusal(PlacementRequest { cpus: Some(vec![4, 0]), ..anything() }),
            "CPU 0 is not one that this process may use (4-5)"
        );
        assert_eq!(
            refusal(PlacementRequest { cpus: Some(vec![]), ..anything() }),
            "the list of CPUs is empty"
        );
    }

    #[test]
    fn large_machines_get_the_largest_number_of_shards() {
        let large: Vec<usize> = (0..300).collect();
        let placement = plan(&anything(), &host(&large)).unwrap();
        assert_eq!(placement.shards.len(), SHARDS_MAX);
        assert_eq!(placement.reasons, ["256 shards: the limit; 300 CPUs are usable"]);
        assert!(!placement.oversubscribed);
    }

    #[test]
    fn without_a_mask_shards_are_counted_and_not_pinned() {
        let blind = Host { affinity_mask: None, ..host(&[0, 1]) };
        let placement = plan(&anything(), &blind).unwrap();
        assert_eq!(cpus(&placement), [None, None]);
        assert_eq!(placement.reasons.len(), 2, "{:?}", placement.reasons);
        let named = plan(&PlacementRequest { cpus: Some(vec![9]), ..anything() }, &blind).unwrap();
        assert_eq!(cpus(&named), [Some(9)]);
        let never = plan(&PlacementRequest { pin: Pin::Never, ..anything() }, &host(&[0])).unwrap();
        assert_eq!(cpus(&never), [None]);
        let nothing = Host { affinity_mask: Some(vec![]), cpuset: None, quota: None, cpu_count: 0 };
        assert_eq!(plan(&anything(), &nothing).unwrap().shards.len(), 1);
    }

    #[test]
    fn cgroups_of_either_version_are_found_and_the_tightest_quota_on_the_way_up_holds() {
        let find = |files: &[(&str, &str)]| {
            let files: HashMap<String, String> =
                files.iter().map(|&(path, text)| (path.to_owned(), text.to_owned())).collect();
            let read = |path: &str| files.get(path).cloned();
            let cgroups = Cgroups::find(&read);
            (cgroups.quota(&read), cgroups.cpuset(&read))
        };
        let unified = find(&[
            ("/proc/self/cgroup", "0::/system.slice/echo.service\n"),
            ("/proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n"),
            ("/sys/fs/cgroup/system.slice/echo.service/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/system.slice/cpu.max", "150000 100000\n"),
            ("/sys/fs/cgroup/cpu.max", "40000 10000\n"),
            ("/sys/fs/cgroup/system.slice/cpuset.cpus.effective", "2-3\n"),
            ("/sys/fs/cgroup/cpuset.cpus.effective", "0-3\n"),
        ]);
        assert_eq!(unified, (percent(150), Some(vec![2, 3])));
        let mounts = "31 30 0:28 /docker/a /sys/fs/cgroup/cpu,cpuacct ro shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                      32 30 0:29 /docker/a /sys/fs/cgroup/cpuset ro - cgroup cgroup rw,cpuset\n";
        let per_controller = find(&[
            (
                "/proc/self/cgroup",
                "5:cpuset:/docker/a\n4:cpu,cpuacct:/docker/a/inner\n1:name=systemd:/docker/a\n",
            ),
            ("/proc/self/mountinfo", mounts),
            ("/sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/inner/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "50000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/cpuset/cpuset.cpus", "1\n"),
        ]);
        assert_eq!(per_controller, (percent(50), Some(vec![1])));
        // A group outside of what is mounted, as in a container without a cgroup namespace.
        let foreign = find(&[
            ("/proc/self/cgroup", "0::/../other\n"),
            ("/proc/self/mountinfo", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"),
            ("/sys/fs/cgroup/cpu.max", "100000 100000\n"),
        ]);
        assert_eq!(foreign, (percent(100), None));
        assert_eq!(find(&[("/proc/self/mountinfo", "garbage - \n - cgroup\n")]), (None, None));
    }

    #[test]
    fn this_host_can_be_planned_for_and_its_cpus_pinned_to() {
        let host = Host::detect();
        let placement = plan(&PlacementRequest { pin: Pin::Always, ..anything() }, &host).unwrap();
        // On threads of their own: the mask dies with them.
        for shard in placement.shards {
            let cpu = shard.cpu.unwrap();
            thread::spawn(move || pin_current_thread(cpu).unwrap()).join().unwrap();
        }
    }

    #[test]
    fn a_cpu_that_does_not_exist_is_refused_and_the_mask_stays() {
        let before = affinity_mask();
        for cpu in [MASK_CPUS - 1, MASK_CPUS, usize::MAX] {
            let error = pin_current_thread(cpu).unwrap_err();
            assert!(error.to_string().contains(&format!("CPU {cpu}")), "{error}");
        }
        assert_eq!(affinity_mask(), before);
    }

    #[test]
    fn cpu_lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(parse_cpu_list("0-3,7").unwrap(), [0, 1, 2, 3, 7]);
        assert_eq!(parse_cpu_list(" 8 , 2-2\n").unwrap(), [8, 2]);
        assert_eq!(parse_cpu_list("5,5,4-5").unwrap(), [5, 5, 4, 5]);
    }

    #[test]
    fn garbage_in_a_cpu_list_is_pointed_at() {
        use CpuListProblem::*;
        let cases = [
            ("", "", 0, Missing),
            ("0,,1", "", 2, Missing),
            ("0,1,", "", 4, Missing),
            ("0-", "0-", 0, Missing),
            ("0,-3", "-3", 2, Missing),
            ("0, x", "x", 2, NotANumber),
            ("+1", "+1", 0, NotANumber),
            ("1-2-3", "1-2-3", 0, NotANumber),
            ("0-3,7:2", "7:2", 4, NotANumber),
            ("٣", "٣", 0, NotANumber),
            ("0,8192", "8192", 2, TooLarge),
            ("0-99999999999999999999", "0-99999999999999999999", 0, TooLarge),
            ("1,3-2", "3-2", 2, Backwards),
        ];
        for (list, part, position, problem) in cases {
            let error = parse_cpu_list(list).unwrap_err();
            assert_eq!(error, CpuListError { part: part.to_owned(), position, problem }, "{list:?}");
        }
        let text = parse_cpu_list("0,3-2").unwrap_err().to_string();
        assert!(text.starts_with("list of CPUs, at byte 2, \"3-2\": the range runs backwards"), "{text}");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(mut cpus in proptest::collection::vec(0..=CPU_MAX, 1..20)) {
            cpus.sort_unstable();
            prop_assert_eq!(parse_cpu_list(&format_cpu_list(&cpus)).unwrap(), cpus);
        }

        #[test]
        fn no_text_makes_the_reader_panic(list in "[-0-9, x٣]{0,30}") {
            if let Err(error) = parse_cpu_list(&list) {
                prop_assert!(list[error.position..].trim_start().starts_with(&error.part));
            }
        }
    }
}
