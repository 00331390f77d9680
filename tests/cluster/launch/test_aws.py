"""What is asked of AWS, over HTTP: of moto's server, and of small ones for what it lacks."""

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster import __main__
from cluster.hardware import catalog
from cluster.launch import aws, network, prices
from cluster.launch.aws import AwsAccount, AwsError
from cluster.launch.network import NetworkRequest
from tests.support.emulated_aws import PRICES, FakeServices, emulated_aws

pytestmark = pytest.mark.slow

EAST = AwsAccount("us-east-1")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServices]:
    with emulated_aws(str(tmp_path_factory.mktemp("home"))) as lacking:
        yield lacking


def launch(account: AwsAccount, instance: str, cluster: str, kind: str, spot: bool) -> str:
    market = {"InstanceMarketOptions": {"MarketType": "spot"}} if spot else {}
    tags = [
        {"Key": aws.CLUSTER_TAG, "Value": cluster},
        {"Key": aws.NODE_TYPE_TAG, "Value": kind},
    ]
    launched = account.client("ec2").run_instances(
        ImageId="ami-12345678", InstanceType=instance, MinCount=1, MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": tags}], **market,
    )  # fmt: skip
    return str(launched["Instances"][0]["InstanceId"])


def test_offers_differ_by_region(cloud: FakeServices) -> None:
    east = aws.zones_offering(EAST, "p5.48xlarge", "trn2.48xlarge")
    assert "us-east-1a" in east["p5.48xlarge"] and east["trn2.48xlarge"] == ()
    assert aws.zones_offering(AwsAccount("us-east-2"), "trn2.48xlarge")["trn2.48xlarge"]
    assert {"us-east-1", "eu-central-1"} <= set(aws.list_regions(EAST))


def test_quotas_are_those_of_the_family(cloud: FakeServices) -> None:
    assert aws.vcpu_quotas(EAST, "g6e.12xlarge") == {"on demand": 192.0, "spot": 96.0}
    assert aws.vcpu_quotas(EAST, "p5.48xlarge") == {"on demand": 0.0, "spot": 384.0}
    assert aws.vcpu_quotas(EAST, "p4d.24xlarge") == {"on demand": 0.0, "spot": 64.0}
    assert aws.vcpu_quotas(EAST, "m7i.2xlarge") == {}


def test_images_by_parameter_by_name_and_as_they_are(cloud: FakeServices) -> None:
    parameter = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
    assert aws.resolve_image(EAST, f"resolve:ssm:{parameter}").startswith("ami-")
    assert aws.resolve_image(EAST, "ami-12345678") == "ami-12345678"
    client = EAST.client("ec2")
    found = client.describe_images(Owners=["amazon"])["Images"]
    pattern = "amzn*"
    named = [each for each in found if each["Name"].startswith("amzn")]
    newest = max(each["CreationDate"] for each in named)
    chosen = aws.resolve_image(EAST, f"name:{pattern}")
    assert chosen in {each["ImageId"] for each in named if each["CreationDate"] == newest}
    with pytest.raises(AwsError, match="Amazon has no image by that name in us-east-1"):
        aws.resolve_image(EAST, "name:No Such Image*")
    with pytest.raises(AwsError, match="ssm:GetParameter resolve:ssm:/none in us-east-1: Param"):
        aws.resolve_image(EAST, "resolve:ssm:/none")


@pytest.mark.parametrize("region", ["us-east-1", "eu-central-1"])
def test_a_bucket_is_private_and_encrypted(cloud: FakeServices, region: str) -> None:
    account = AwsAccount(region)
    name = f"bertha-test-{region}"
    assert aws.ensure_bucket(account, name) and not aws.ensure_bucket(account, name)
    client = account.client("s3")
    (rule,) = client.get_bucket_encryption(Bucket=name)["ServerSideEncryptionConfiguration"][
        "Rules"
    ]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    closed = client.get_public_access_block(Bucket=name)["PublicAccessBlockConfiguration"]
    assert len(closed) == 4 and all(closed.values())
    assert "aws:SecureTransport" in client.get_bucket_policy(Bucket=name)["Policy"]


def test_prices_of_this_hour_go_into_the_catalogue(cloud: FakeServices) -> None:
    known = catalog.load_catalog()
    live = prices.with_live_prices(known, "eu-central-1")
    assert {machine.region for machine in live.machines} == {"eu-central-1"}
    machine = live.get_machine("g6e.12xlarge")
    assert machine.on_demand == PRICES["g6e.12xlarge"]
    assert machine.spot == pytest.approx(0.00001), "moto's price of everything"
    assert machine.accelerator == known.get_machine("g6e.12xlarge").accelerator
    # Where nothing live is known, the table stands.
    there = prices.with_live_prices(known, None).get_machine("p4d.24xlarge", "us-east-1")
    assert there.on_demand == known.get_machine("p4d.24xlarge").on_demand
    assert there.spot == pytest.approx(0.00001)


def test_owned_machines_keep_their_price(cloud: FakeServices, tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("machines: [{instance: box, accelerator: RTX 4090, count: 2}]\n")
    known = catalog.load_catalog(own)
    assert prices.with_live_prices(known, "us-east-2").get_machine("box") == known.get_machine(
        "box"
    )


def test_what_a_cluster_has_cost(cloud: FakeServices, capsys: pytest.CaptureFixture[str]) -> None:
    launch(EAST, "g6e.12xlarge", "costly", "g6e", spot=False)
    launch(EAST, "p5.48xlarge", "costly", "p5-spot", spot=True)
    launch(EAST, "m5.large", "costly", "head", spot=False)
    launch(EAST, "p5.48xlarge", "of-others", "p5", spot=False)
    there = aws.running_instances(EAST, "costly")
    assert {each.node_type for each in there} == {"g6e", "p5-spot", "head"}
    started = max(each.launch_time for each in there)
    spent = prices.instance_costs(EAST, "costly", started + timedelta(hours=2))
    by_kind = {each.instance.node_type: each for each in spent}
    assert by_kind["g6e"].usd == pytest.approx(2 * PRICES["g6e.12xlarge"], rel=0.01)
    assert by_kind["p5-spot"].usd_per_hour == pytest.approx(0.00001)
    assert by_kind["head"].usd is None, "no price is listed for it"


def test_the_command_tells_what_was_spent(
    cloud: FakeServices, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    launch(EAST, "g6e.12xlarge", "told", "g6e", spot=False)
    launch(EAST, "m5.large", "told", "head", spot=False)
    path = tmp_path / "told.yaml"
    path.write_text("{cluster_name: told, provider: {type: aws, region: us-east-1}}\n")
    assert __main__.main(["spent", str(path)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and "10.50 $/h" in said[0] + said[1]
    assert "told: 2 machine(s) run, 1 at a price that is not known: $0.00 so far" in said[2]
    assert __main__.main(["spent", "onprem"]) == 2
    assert "nothing is rented" in capsys.readouterr().err


def test_the_command_tells_what_is_offered(
    cloud: FakeServices, capsys: pytest.CaptureFixture[str]
) -> None:
    assert __main__.main(["offers", "g6e.12xlarge", "--region", "us-east-1"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split()[:2] == ["us-east-1", "10.50"]
    assert "192 on demand, 96 spot" in line and line.endswith("a b c d")
    assert __main__.main(["offers", "trn2.48xlarge", "--region", "us-east-1"]) == 1
    assert "none of 1 region(s) offers it" in capsys.readouterr().out


def test_a_plan_with_the_prices_of_now(
    cloud: FakeServices, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", "imdb", "--live-prices", "--region", "eu-central-1"]
    assert __main__.main(arguments) == 0
    assert "eu-central-1" in capsys.readouterr().out


def test_a_placement_group_is_made_once(
    cloud: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", cloud.url)
    network.ensure_placement_group(EAST, "together")
    network.ensure_placement_group(EAST, "together")
    made = [asked for action, asked in cloud.requests if action == "CreatePlacementGroup"]
    assert [(each["GroupName"], each["Strategy"]) for each in made] == [("together", "cluster")]


def test_a_refusal_is_told_with_the_way_out(
    cloud: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.refused = "AccessDeniedException"
    try:
        with pytest.raises(AwsError, match=r"AccessDeniedException: no; your role may not do that"):
            aws.vcpu_quotas(EAST, "p5.48xlarge")
    finally:
        cloud.refused = ""


def test_without_credentials_or_network_the_way_out_is_told(
    cloud: FakeServices, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(AwsError, match="is the network up, and the region right") as raised:
        aws.list_regions(EAST)
    assert "a-secret-that-must-not-be-seen" not in str(raised.value)
    import boto3

    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)  # which holds those of before
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(AwsError, match="no AWS credentials are found here"):
        aws.list_regions(EAST)


def test_a_zone_is_where_all_that_is_on_is_offered(cloud: FakeServices) -> None:
    with pytest.raises(AwsError, match=r"no zone of us-east-1 offers all.*trn2.48xlarge: nowhere"):
        network.ensure_network(
            EAST, NetworkRequest("c", "c", "203.0.113.7/32", ("trn2.48xlarge", "m7i.2xlarge"))
        )
    found = network.ensure_network(
        EAST, NetworkRequest("c", "c", "203.0.113.7/32", ("g6e.12xlarge",))
    )
    assert (
        found.zone in aws.zones_offering(EAST, "g6e.12xlarge")["g6e.12xlarge"]
        and found.private_subnet is None
    )


def test_this_machines_address_towards_an_emulation_is_its_own(cloud: FakeServices) -> None:
    assert network.public_address() == "127.0.0.1"


def test_hours_are_counted_to_now() -> None:
    running = aws.RunningInstance("i", "t", "k", "z", False, datetime(2026, 1, 1, tzinfo=UTC))
    spent = prices.InstanceCost(running, 3.0, 2.0)
    assert spent.usd == 6.0
    assert dataclasses.replace(spent, usd_per_hour=None).usd is None
