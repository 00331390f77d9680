"""Cluster files with one problem each: a shipped file, the edits, the expected message."""

from typing import Any

DELETED = object()
Edits = dict[str, Any]

HEAD = "available_node_types/head/node_config"
GPU = "available_node_types/g6e-spot"
NODE = f"{GPU}/node_config"
TRN = "available_node_types/trn2-spot"
START, JOIN = "head_start_ray_commands", "worker_start_ray_commands"
TOKEN = "~/.ray/auth_token"
HEAD_START = "export RAY_AUTH_MODE=token; ray start --head --port=6379"
EFA = {"InterfaceType": "efa", "SubnetId": "subnet-1", "Groups": ["sg-1"]}

BROKEN: list[tuple[str, Edits, str]] = [
    # Ray's own shape
    ("onprem", {"max_worker": 3}, r"max_worker: Ray has no such setting; did you mean max_workers"),
    ("onprem", {"cluster_name": DELETED}, r"cluster_name: missing; Ray requires it"),
    ("onprem", {"cluster_name": 7}, r"cluster_name = 7: must be text"),
    ("onprem", {"idle_timeout_minutes": -1}, r"idle_timeout_minutes = -1: .*minimum of 0"),
    ("onprem", {"setup_commands": "pip"}, r"setup_commands = 'pip': must be a list"),
    ("aws-gpu", {f"{GPU}/resources": DELETED}, r"g6e-spot.resources: missing; Ray requires"),
    (
        "aws-trainium",
        {f"{TRN}/resources/neuron_cores": 0.5},
        r"neuron_cores = 0.5: must be a whole",
    ),
    ("aws-gpu", {f"{GPU}/min_worker": 2}, r"min_worker: Ray has no such .* did you mean min_work"),
    ("aws-gpu", {"auth/ssh_usr": "u"}, r"auth.ssh_usr: Ray has no .*did you mean ssh_user"),
    ("onprem", {"provider/type": DELETED}, r"provider.type: missing"),
    ("onprem", {"provider/type": "lokal"}, r"provider.type = 'lokal': .*did you mean local"),
    # our keys
    ("onprem", {"metadata/accelerator": "gpu"}, r"metadata.accelerator = 'gpu': .*'cuda'"),
    ("onprem", {"metadata/device": 2}, r"metadata.device: no such setting; did you mean device"),
    ("onprem", {"metadata/min_workers": 9}, r"metadata.min_workers = 9: the cluster has 3 worker"),
    ("onprem", {"metadata/storage": "runs"}, r"metadata.storage = 'runs': is another directory on"),
    ("onprem", {"metadata/storage": "gs://b/r"}, r"metadata.storage = 'gs://b/r': is neither a di"),
    ("aws-gpu", {"metadata/storage": "s3://b/r"}, r"storage = 's3://b/r': is in bucket b, but no"),
    ("aws-gpu", {"metadata/ssh_from": "me"}, r"metadata.ssh_from = 'me': is not a network, as 203"),
    ("aws-gpu", {"metadata/ssh_from": "0.0.0.0/0"}, r"metadata.ssh_from = .*: lets everybody try"),
    (
        "aws-gpu",
        {"metadata/bucket": "My_Runs"},
        r"metadata.bucket = 'My_Runs': is not a bucket name",
    ),
    ("aws-gpu", {"metadata/devices_per_node": 8}, r"devices_per_node = 8: g6e.12xlarge has 4"),
    ("aws-trainium", {"metadata/devices_per_node": 16}, r"= 16: trn2.48xlarge has 64"),
    ("aws-gpu", {"metadata/accelerator_name": "L4"}, r"= 'L4': g6e.12xlarge has L40S; remove it"),
    (
        "aws-gpu",
        {"available_node_types/p5/max_workers": 2},
        r"metadata.devices_per_node = 4: p5.48xlarge has 8",
    ),
    (
        "aws-gpu",
        {"metadata/accelerator": "neuron"},
        r"accelerator = 'neuron': workers are g6e.12xl",
    ),
    # machines of one's own
    (
        "onprem",
        {"provider/head_ip": DELETED},
        r"provider.head_ip: missing; the address of the head",
    ),
    ("onprem", {"provider/worker_ips": DELETED}, r"provider.worker_ips: missing; a list"),
    (
        "onprem",
        {"provider/head_ip": "10.0.0.300"},
        r"head_ip = '10.0.0.300': is not an address: four",
    ),
    ("onprem", {"provider/head_ip": "a b"}, r"head_ip = 'a b': is neither an address nor a host"),
    (
        "onprem",
        {"provider/head_ip": "192.0.2.1"},
        r"head_ip = '192.0.2.1': is a placeholder; fill in",
    ),
    (
        "onprem",
        {"provider/head_ip": "127.0.0.1"},
        r"head_ip = '127.0.0.1': is a loopback address, which on a worker",
    ),
    (
        "onprem",
        {"provider/worker_ips/0": "10.0.0.1"},
        r"worker_ips = '10.0.0.1': contains the head",
    ),
    (
        "onprem",
        {"provider/worker_ips/1": "10.0.0.2"},
        r"worker_ips = '10.0.0.2': is listed 2 times",
    ),
    (
        "onprem",
        {"provider/worker_ips/1": "localhost"},
        r"worker_ips = 'localhost': is a loopback address; give one",
    ),
    (
        "onprem",
        {"max_workers": 1},
        r"max_workers = 1: 2 machine\(s\) are listed in provider.worker",
    ),
    (
        "onprem",
        {"available_node_types": {"a": {"resources": {}, "node_config": {}}}},
        r"available_node_types: is for rented machines, .*list machines in provider",
    ),
    # machines of EC2
    ("aws-gpu", {"provider/region": DELETED}, r"provider.region: missing; as us-east-1"),
    ("aws-gpu", {"provider/region": "virginia"}, r"provider.region = 'virginia': is not a region"),
    (
        "aws-gpu",
        {"provider/availability_zone": "us-west-2a"},
        r"availability_zone = 'us-west-2a': is not in provider.region us",
    ),
    (
        "aws-gpu",
        {"provider/aws_credentials": {"aws_access_key_id": "x"}},
        r"provider.aws_credentials: would be copied to every node",
    ),
    (
        "aws-gpu",
        {
            "provider/security_group": {
                "GroupName": "g",
                "IpPermissions": [{"FromPort": 8265, "IpRanges": [{"CidrIp": "0.0.0.0/0"}]}],
            }
        },
        r"IpPermissions = '0.0.0.0/0': opens port 8265 to everybody",
    ),
    ("aws-gpu", {"head_node_type": "haed"}, r"head_node_type = 'haed': .*did you mean head"),
    (
        "aws-gpu",
        {f"{NODE}/InstanceType": DELETED},
        r"g6e-spot.node_config.InstanceType: missing; as",
    ),
    (
        "aws-gpu",
        {f"{NODE}/InstanceType": "g6e.12xlrage"},
        r"no such size; did you mean g6e.12xlarge",
    ),
    (
        "aws-gpu",
        {f"{NODE}/InstanceType": "eight GPUs"},
        r"InstanceType = 'eight GPUs': is not an instance type",
    ),
    (
        "aws-trainium",
        {f"{TRN}/node_config/InstanceType": "trn1.32xlarge"},
        r"only the older environ",
    ),
    (
        "aws-gpu",
        {f"{NODE}/ImageId": DELETED},
        r"ImageId: missing: Ray would use Ubuntu 18.04 with CUD",
    ),
    ("aws-gpu", {f"{NODE}/ImageId": "ubuntu"}, r"ImageId = 'ubuntu': is not an image: ami-"),
    (
        "aws-gpu",
        {f"{NODE}/IamInstanceProfile": DELETED},
        r"IamInstanceProfile: missing: Ray gives a ro",
    ),
    (
        "aws-gpu",
        {f"{NODE}/MetadataOptions": DELETED},
        r"MetadataOptions.HttpTokens = None: must be req",
    ),
    (
        "aws-gpu",
        {f"{NODE}/BlockDeviceMappings": DELETED},
        r"BlockDeviceMappings: missing: the image's",
    ),
    (
        "aws-gpu",
        {f"{NODE}/BlockDeviceMappings/0/Ebs/VolumeSize": 30},
        r"VolumeSize = 30: torch, its",
    ),
    (
        "aws-gpu",
        {f"{NODE}/BlockDeviceMappings/0/Ebs/Encrypted": False},
        r"Encrypted = False: must be",
    ),
    (
        "aws-gpu",
        {f"{NODE}/NetworkInterfaces": [EFA], f"{NODE}/SubnetIds": ["subnet-1"]},
        r"node_config.SubnetIds: conflicts with NetworkInterfaces",
    ),
    (
        "aws-gpu",
        {f"{NODE}/NetworkInterfaces": [{"InterfaceType": "efa"}]},
        r"NetworkInterfaces.0.SubnetId: missing; remove NetworkInterfaces",
    ),
    ("aws-gpu", {f"{NODE}/NetworkInterfaces": [EFA] * 4}, r"= '4 of EFA': g6e.12xlarge has 1 EFA"),
    ("aws-gpu", {f"{GPU}/resources": {"GPU": 8}}, r"resources.GPU = 8: g6e.12xlarge has 4"),
    (
        "aws-trainium",
        {f"{TRN}/resources": {}},
        r"neuron_cores: missing, and Ray does not know trn2",
    ),
    (
        "aws-gpu",
        {f"{HEAD}/InstanceMarketOptions": {"MarketType": "spot"}},
        r"= 'spot': on the head",
    ),
    (
        "aws-gpu",
        {"auth/ssh_private_key": "~/.ssh/id_ed25519"},
        r"KeyName: missing, and auth.ssh_pri",
    ),
    ("aws-gpu", {"max_workers": 1}, r"max_workers = 1: min_workers of all node types sum to 2"),
    ("aws-gpu", {f"{GPU}/max_workers": 1}, r"g6e-spot.max_workers = 1: is less than min_workers 2"),
    ("aws-gpu", {f"{GPU}/min_workers": 0}, r"available_node_types: no node type has min_workers"),
    # how Ray is started, and who gets in
    (
        "onprem",
        {START: DELETED},
        r"head_start_ray_commands: missing; Ray's defaults require no token",
    ),
    ("onprem", {START: ["ray stop"]}, r"head_start_ray_commands: no `ray start --head`"),
    (
        "onprem",
        {START: [HEAD_START]},
        r"head_start_ray_commands: no --autoscaling-config, so no worker",
    ),
    (
        "onprem",
        {START: ["ray start --head --autoscaling-config=x --dashboard-host=0.0.0.0"]},
        r"opens the dashboard to the network without a token",
    ),
    (
        "onprem",
        {JOIN: ["ray start --address=$RAY_HEAD_IP:6379"]},
        r"worker_.*: no RAY_AUTH_MODE=tok",
    ),
    ("onprem", {JOIN: ["ray stop"]}, r"worker_start_ray_commands: no `ray start --address="),
    (
        "onprem",
        {JOIN: ["RAY_AUTH_MODE=token ray start --address=10.0.0.9:6379"]},
        r"names another head",
    ),
    ("onprem", {"setup_commands": ["pip install ray[train]==2.9.0"]}, r"= 'ray==2.9.0': ray \d"),
    ("onprem", {"file_mounts": {}}, r'file_mounts: no "~/.ray/auth_token", and nodes without'),
    (
        "onprem",
        {"file_mounts": {TOKEN: TOKEN, "/data": "/no/such"}},
        r"file_mounts./data = '/no/such': no such file",
    ),
    ("onprem", {"auth/ssh_user": DELETED}, r"auth.ssh_user: missing; the user that Ray logs in as"),
    (
        "onprem",
        {"auth/ssh_private_key": "~/none.pem"},
        r"ssh_private_key = '~/none.pem': no such fi",
    ),
    (
        "onprem",
        {"setup_commands": ["export HF_TOKEN=hf_very_secret"]},
        r"setup_commands: contains a se",
    ),
    (
        "aws-gpu",
        {"setup_commands": DELETED},
        r"setup_commands: missing: Ray's defaults install a nightly",
    ),
]
