"""Build the site from the notebooks into _docs: `python docs/build.py`. Warnings are errors.

KaTeX, Mermaid, reveal.js and ONNX Runtime Web come from the npm registry, at known versions and checksums, and stay in coursekit's folder.
The installation gets them (`python docs/build.py --fetch`), so that the site can be built without a network.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import sys
import tarfile
import time
from pathlib import Path

from pages import MODEL_PAGE, ROOT, write_pages

HERE = Path(__file__).resolve().parent
REGISTRY = "https://registry.npmjs.org"
SCRIPTS = {  # archive -> (sha256, members by the start of their names, folder)
    f"{REGISTRY}/katex/-/katex-0.19.1.tgz": (
        "24da5a599eb2fcede2e270b99a6ff48bca816beecc95feeb84e8cccbd1bb34fd",
        ("package/dist/katex.min.", "package/dist/contrib/auto-render.min.js", "package/dist/fonts/", "package/LICENSE"), "katex"),
    f"{REGISTRY}/@mermaid-js/tiny/-/tiny-11.17.2.tgz": (
        "28302a2f6bd556bfd223acff76a1fd511bcc9e6f1cac1bad91b904469aeca102", ("package/dist/mermaid.tiny.js", "package/LICENSE"), "mermaid"),
    f"{REGISTRY}/reveal.js/-/reveal.js-5.2.1.tgz": (
        "359b575dd51bbda32f89b2fd4c7dc46ad7389a805572158916c29252f7a27333",
        ("package/dist/reveal.js", "package/dist/reveal.css", "package/dist/reset.css", "package/LICENSE"), "reveal"),
}  # fmt: skip


def fetch_archive(url: str) -> Path:
    """One of SCRIPTS, in coursekit's folder."""
    from coursekit.data.download import fetch_file  # takes seconds, because it comes with PyTorch

    return fetch_file(url, "runtime", sha256=SCRIPTS[url][0], max_bytes=1 << 25)


def fetch_all() -> int:
    """Get what `make docs`, `make slides` and an export as a page need from the network; 1 if that fails."""
    from coursekit.data.download import DownloadError
    from coursekit.deploy.page import fetch_runtime

    try:
        for url in SCRIPTS:
            fetch_archive(url)
        fetch_runtime()
    except DownloadError as e:
        print(e, file=sys.stderr)
        return 1
    return 0


def fetch_scripts(out: Path, *names: str) -> None:
    """The files of these scripts that pages need, each in a folder of its own."""
    for url, (sha256, wanted, name) in SCRIPTS.items():
        done = out / name / sha256[:12]
        if done.exists() or name not in names:
            continue
        with tarfile.open(fetch_archive(url)) as tar:
            for member in tar:
                inside = member.name.removeprefix("package/").removeprefix("dist/")
                if member.isfile() and member.name.startswith(wanted) and not inside.endswith((".ttf", ".woff", ".mjs", ".map")):
                    target = out / name / Path(inside)
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.write_bytes(tar.extractfile(member).read())  # type: ignore[union-attr]
        done.touch()


def front_page_model(out: Path) -> None:
    """The page that names what is in a photo, in the visitor's browser: the front page shows it. Made again only if its parts changed."""
    parts = [ROOT / "settings.ini", *sorted((ROOT / "coursekit" / "deploy").glob("page.*"))]
    key = hashlib.sha256(b"".join(p.read_bytes() for p in parts)).hexdigest()
    done = out.with_name("front_page_model.txt")
    if not (out / MODEL_PAGE).exists() or not done.exists() or done.read_text(encoding="utf-8") != key:
        import coursekit

        out.mkdir(parents=True, exist_ok=True)
        coursekit.pretrained("imagenet").export(out / MODEL_PAGE)
        done.write_text(key, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "_docs", help="where the site goes")
    parser.add_argument("--work", type=Path, default=ROOT / "_proc", help="what is kept for the next build")
    parser.add_argument("--fetch", action="store_true", help="only get what comes from the network, for later")
    args = parser.parse_args(argv)
    if args.fetch:
        return fetch_all()
    from sphinx.cmd.build import main as sphinx

    started, work = time.monotonic(), args.work.resolve()
    fetch_scripts(work / "scripts", "katex", "mermaid")
    front_page_model(work / "model")
    write_pages(work / "pages")
    built = work / "html"  # not `out` itself: MyST-NB puts the notebooks it has read into a folder beside it, and a failed build leaves `out` alone
    shutil.rmtree(built, ignore_errors=True)
    status = sphinx(["-a", "-W", "--keep-going", "-q", "-b", "html", "-c", str(HERE), "-d", str(work / "doctrees"),
                     "-D", f"html_static_path={HERE / 'static'},{work / 'scripts'}", "-D", f"html_extra_path={work / 'pages' / 'extra'},{work / 'model'}",
                     str(work / "pages"), str(built)])  # fmt: skip
    if not status:
        shutil.rmtree(args.out, ignore_errors=True)
        shutil.move(built, args.out)
        pages = len(list(args.out.rglob("*.html")))
        print(f"{pages} pages in {args.out.name}, {time.monotonic() - started:.0f} s: open {args.out.name}/index.html")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
