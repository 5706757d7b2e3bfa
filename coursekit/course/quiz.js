// Tells the kernel how each question was answered at the first try. What is seen is the quiz's own HTML, in the same output.
export default {
  render({ model, el }) {
    el.hidden = true;
    const heard = (event) => {
      const choice = event.target, quiz = choice.closest?.(".ck-quiz"), question = choice.closest?.("li");
      if (!choice.open || !question || quiz?.getAttribute("aria-label") !== model.get("title") || question.dataset.told) return;
      question.dataset.told = "yes";
      model.send({ question: [...question.parentElement.children].indexOf(question), right: choice.classList.contains("ck-right") });
    };
    document.addEventListener("toggle", heard, true);
    return () => document.removeEventListener("toggle", heard, true);
  },
};
