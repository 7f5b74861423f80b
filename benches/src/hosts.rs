//! The simulated machines: their tags never change, so each is rendered once.

use crate::random::Random;

/// Regions and their datacenters, as TSBS has them.
const REGIONS: &[(&str, &[&str])] = &[
    (
        "us-east-1",
        &["us-east-1a", "us-east-1b", "us-east-1c", "us-east-1e"],
    ),
    ("us-west-1", &["us-west-1a", "us-west-1b"]),
    ("us-west-2", &["us-west-2a", "us-west-2b", "us-west-2c"]),
    ("eu-west-1", &["eu-west-1a", "eu-west-1b", "eu-west-1c"]),
    ("eu-central-1", &["eu-central-1a", "eu-central-1b"]),
    ("ap-southeast-1", &["ap-southeast-1a", "ap-southeast-1b"]),
    ("ap-southeast-2", &["ap-southeast-2a", "ap-southeast-2b"]),
    ("ap-northeast-1", &["ap-northeast-1a", "ap-northeast-1c"]),
    ("sa-east-1", &["sa-east-1a", "sa-east-1b", "sa-east-1c"]),
];
const SYSTEMS: &[&str] = &["Ubuntu16.10", "Ubuntu16.04LTS", "Ubuntu15.10"];
const ARCHITECTURES: &[&str] = &["x64", "x86"];
const TEAMS: &[&str] = &["SF", "NYC", "LON", "CHI"];
const ENVIRONMENTS: &[&str] = &["production", "staging", "test"];
const RACKS: u64 = 100;
const SERVICES: u64 = 20;
const SERVICE_VERSIONS: u64 = 2;

/// `measurement,tag=value,…` of host number `index`, up to but without the space.
pub(crate) fn line_head(index: u64, random: &mut Random) -> Vec<u8> {
    let (region, datacenters) = random.choose(REGIONS);
    format!(
        "cpu,hostname=host_{index},region={region},datacenter={},rack={},os={},arch={},team={},service={},service_version={},service_environment={}",
        random.choose(datacenters),
        random.below(RACKS),
        random.choose(SYSTEMS),
        random.choose(ARCHITECTURES),
        random.choose(TEAMS),
        random.below(SERVICES),
        random.below(SERVICE_VERSIONS),
        random.choose(ENVIRONMENTS),
    )
    .into_bytes()
}
