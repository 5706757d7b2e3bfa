function render({ model, el }) {
  const regions = {};
  for (const role of ["status", "alert"]) {
    regions[role] = document.createElement("div");
    regions[role].setAttribute("role", role);
    regions[role].setAttribute("aria-atomic", "false");  // only the new line, not all of them again
    el.append(regions[role]);
  }
  const say = message => {
    const region = regions[message.role];
    if (!region) return;
    const line = document.createElement("div");
    line.textContent = message.text;
    region.append(line);
    while (region.childElementCount > 5) region.firstElementChild.remove();
  };
  model.on("msg:custom", say);
  return () => model.off("msg:custom", say);
}
export default { render };
