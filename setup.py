"""Installs the four code folders, the configs and the shipped weights, with the command `maskstream`."""

from pathlib import Path

from setuptools import find_namespace_packages, setup

REQUIREMENTS = [
    "torch>=2.11,<2.14",                       # networks, losses; older lack API that both CPU and CUDA builds share
    "nvidia-dali-cuda130>=2.4,<3",             # decoding and augmentation, one definition for CPU and GPU
    "ray[default,data,serve,train]>=2.60,<3",  # actors, training workers, serving; Train v2 and token authentication
    "requests>=2.32,<3",                       # HTTP of the client of live streams; ray[serve] brings it along
    "websockets>=14,<18",                      # ... and its WebSockets; uvicorn, with ray[serve], brings it along
    "fsspec>=2024.6",                          # snapshots and videos in s3:// and the like; ray[data] brings it along
    "numpy>=2,<3",                             # arrays between the parts; DALI and decord are built for 2
    "pycocotools>=2.0.10,<3",                  # run-length masks exactly as the official evaluators read them
    "pyyaml>=6,<7",                            # settings
    "decord>=0.6,<0.7",                        # clips at random positions of local MP4 and MKV files
    "av>=17,<20",                              # every other video: decoding on the CPU, and encoding of overlays
    "safetensors>=0.5,<1",                     # weights that cannot carry code
    "pillow>=11,<14",                          # PNG masks with a palette, text in overlays, images DALI does not take
    "matplotlib>=3.9,<4",                      # curves and plots
    "rich>=13.7,<16",                          # progress bars and tables
    "tensorboardX>=2.6,<3",                    # event files for TensorBoard; Ray Train brings it along
    "scipy>=1.15,<2",                          # the best assignment, where an evaluation asks for it; as TrackEval
    "trackeval>=1.3,<2",                       # HOTA, IDF1 and MOTA; brings OpenCV along, which nothing here loads
]

TEST_REQUIREMENTS = [
    "pytest>=8,<10",                           # the tests
    "pytest-xdist>=3.6,<4",                    # ... on all cores: `make test` shares their files out over processes
    "hypothesis>=6.100,<7",                    # properties of masks and IoU on inputs nobody thought of
    "s3fs>=2024.6",                            # videos and snapshots in s3:// ...
    "moto[server]>=5,<6",                      # ... of an S3 server that the tests start
    "ruff>=0.12",                              # the style that a program can check
]

setup(
    name="maskstream",
    version="0.1.0",
    description="Online video instance segmentation as a streaming dataflow: DALI, Ray actors, Ray Train, Ray Serve.",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10,<3.13",
    packages=find_namespace_packages(include=["models*", "operators*", "pipelines*", "trainers*", "configs*"]),
    package_data={"": ["*.yaml", "*.json", "*.safetensors", "*.html", "*.css", "*.js", "*.svg"]},
    install_requires=REQUIREMENTS,
    extras_require={"test": TEST_REQUIREMENTS},
    entry_points={"console_scripts": ["maskstream = pipelines.cli:main"]},
)
