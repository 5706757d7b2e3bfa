"""Packaging: everything is read from settings.ini, so that nbdev and pip never disagree."""

import configparser
import json
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
SPDX = {"apache2": "Apache-2.0"}
STATUS = {"2": "2 - Pre-Alpha", "3": "3 - Alpha", "4": "4 - Beta", "5": "5 - Production/Stable"}
DATA = ("safetensors", "json", "txt", "ipynb", "yaml", "js", "css", "html")  # endings of files that are no code
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def read_settings() -> dict[str, str]:
    parser = configparser.ConfigParser(delimiters=["="])
    if not parser.read(ROOT / "settings.ini", encoding="utf-8"):
        raise FileNotFoundError("setup.py: settings.ini is missing beside setup.py; build from a full checkout.")
    return dict(parser["DEFAULT"])


class BuildWithLessons(build_py):
    """The package, and in it lessons and solutions without outputs, which `coursekit lab` copies for the reader."""

    def run(self) -> None:
        super().run()
        if getattr(self, "editable_mode", False):  # the checkout has them
            return
        for folder, inside in (("lessons", "."), ("solutions", "solutions")):
            for path in sorted((ROOT / "nbs" / folder).glob("[0-9]*.ipynb")):
                notebook = json.loads(path.read_text(encoding="utf-8"))
                for cell in notebook["cells"]:
                    if cell["cell_type"] == "code":
                        cell["outputs"] = []
                target = Path(self.build_lib) / cfg["lib_path"] / "lesson_files" / inside / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


cfg = read_settings()
readme = ROOT / "README.md"
runtime = cfg["requirements"].split()
course = cfg["course_requirements"].split()
dev = cfg["dev_requirements"].split()
extras = {name: cfg[f"{name}_requirements"].split() for name in ("onnx", "docs")}

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    long_description=readme.read_text(encoding="utf-8") if readme.exists() else cfg["description"],
    long_description_content_type="text/markdown",
    author=cfg["author"],
    author_email=cfg["author_email"],
    license_expression=SPDX[cfg["license"]],
    license_files=["LICENSE"],
    keywords=cfg["keywords"].split(),
    url=cfg["git_url"],
    project_urls={"Documentation": cfg["doc_host"] + cfg["doc_baseurl"], "Source": cfg["git_url"]},
    classifiers=[
        f"Development Status :: {STATUS[cfg['status']]}",
        "Intended Audience :: Developers",
        "Intended Audience :: Education",
        "Natural Language :: English",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        *(f"Programming Language :: Python :: {v}" for v in PYTHONS),
    ],
    packages=find_packages(include=[cfg["lib_path"], f"{cfg['lib_path']}.*"]),
    package_data={"": ["py.typed", "*/*.yaml", "*/*.css", *(f"*.{e}" for e in DATA)]},
    include_package_data=True,
    cmdclass={"build_py": BuildWithLessons},
    zip_safe=False,
    python_requires=f">={cfg['min_python']}",
    install_requires=runtime,
    extras_require={"course": course, **extras, "dev": [*course, *extras["docs"], *dev]},
    entry_points={"console_scripts": cfg["console_scripts"].split()},
)
