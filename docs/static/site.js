// Mathematics and diagrams are drawn, and quizzes counted, by what lies beside this file: nothing comes from elsewhere.
(() => {
  const here = document.currentScript.src.replace(/site\.js.*$/, "");
  const load = (name) => new Promise((done, failed) => {
    const script = Object.assign(document.createElement("script"), { src: here + name, onload: done, onerror: failed });
    document.head.append(script);
  });
  const dark = () => {
    const theme = document.body.dataset.theme;
    return theme === "dark" || (theme !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  };

  const mathematics = async () => {
    if (!document.querySelector(".math")) return;
    document.head.append(Object.assign(document.createElement("link"), { rel: "stylesheet", href: here + "katex/katex.min.css" }));
    await load("katex/katex.min.js");
    for (const element of document.querySelectorAll(".math")) {
      const tex = element.textContent.trim();
      katex.render(tex.slice(2, -2), element, { displayMode: tex.startsWith("\\["), throwOnError: false });
    }
  };

  const diagrams = async () => {
    const elements = [...document.querySelectorAll("div.mermaid")];
    if (!elements.length) return;
    await load("mermaid/mermaid.tiny.js");
    const sources = elements.map((element) => element.textContent);
    const draw = async () => {
      mermaid.initialize({ startOnLoad: false, theme: dark() ? "dark" : "neutral", fontFamily: "inherit",
        themeVariables: { edgeLabelBackground: "transparent" } });
      elements.forEach((element, i) => { element.removeAttribute("data-processed"); element.textContent = sources[i]; });
      await mermaid.run({ nodes: elements });
    };
    await draw();
    let was = dark();
    new MutationObserver(() => { if (dark() !== was) { was = dark(); draw(); } }).observe(document.body, { attributeFilter: ["data-theme"] });
  };

  const quizzes = () => {
    for (const quiz of document.querySelectorAll(".ck-quiz")) {
      const questions = [...quiz.querySelectorAll("ol > li")];
      const score = Object.assign(document.createElement("p"), { className: "quiz-score" });
      score.setAttribute("role", "status");
      quiz.append(score);
      quiz.addEventListener("toggle", (event) => {
        const question = event.target.closest("li");
        if (!event.target.open || !question || question.dataset.first) return;
        question.dataset.first = event.target.classList.contains("ck-right") ? "right" : "wrong";
        const answered = questions.filter((q) => q.dataset.first).length;
        const right = questions.filter((q) => q.dataset.first === "right").length;
        score.textContent = `${right} right at the first try, of ${answered} answered (${questions.length} questions).`;
      }, true);
    }
  };

  // The network of the front page is loaded when somebody asks for it, or drags a photo over the page.
  const tryIt = () => {
    for (const box of document.querySelectorAll(".try-it")) {
      const show = () => {
        if (box.querySelector("iframe")) return;
        const frame = Object.assign(document.createElement("iframe"), { src: box.dataset.page, title: "What is in your photo?" });
        box.replaceChildren(frame);
        frame.focus();
      };
      box.querySelector("button").addEventListener("click", show);
      addEventListener("dragenter", show, { once: true });
    }
  };

  // Lines of text are wrapped; rows of numbers would lose their columns.
  const grids = () => {
    for (const text of document.querySelectorAll(".cell_output .output.stream pre")) text.classList.toggle("grid", /^ *\[+ *-?[\d.]+ +-?[\d.]+ /m.test(text.textContent));
  };

  // What scrolls sideways can be scrolled with the keyboard, too.
  const scrollable = () => {
    const boxes = document.querySelectorAll(".cell_output, .highlight pre, .output, .table-wrapper, article pre, div.math, .mermaid");
    for (const box of boxes) {
      if (box.scrollWidth > box.clientWidth + 1 && !box.querySelector("a, button, summary, input")) box.tabIndex = 0;
    }
  };

  // Enter opens and closes parts of the sidebar, as Space does, and Escape closes what lies over the page.
  const keys = () => addEventListener("keydown", ({ key, target }) => {
    if (key === "Enter" && target.matches?.(".toctree-checkbox, .sidebar-toggle")) target.click();
    if (key === "Escape") document.querySelectorAll(".sidebar-toggle:checked").forEach((box) => { box.click(); box.focus(); });
  });

  // The heading of a folded cell says what is in it; a label would hide that from screen readers.
  const labels = () => document.querySelectorAll("details.hide > summary").forEach((summary) => summary.removeAttribute("aria-label"));

  const ready = () => { labels(); grids(); keys(); quizzes(); tryIt(); Promise.allSettled([mathematics(), diagrams()]).then(() => { scrollable(); document.body.dataset.drawn = "yes"; dispatchEvent(new Event("drawn")); }); };
  document.readyState === "loading" ? document.addEventListener("DOMContentLoaded", ready) : ready();
})();
