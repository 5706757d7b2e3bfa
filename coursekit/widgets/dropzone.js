const mb = n => (n / 1e6).toFixed(1);
function render({ model, el }) {
  const make = (tag, text, kind) => {
    const e = document.createElement(tag);
    if (text) e.textContent = text;
    if (kind) e.className = kind;
    return e;
  };
  const button = text => Object.assign(make("button", text, "jupyter-widgets jupyter-button widget-button"), { type: "button" });
  const zone = make("div", "", "ck-drop"), row = make("div", "", "ck-drop-row"), state = make("div", "", "ck-drop-state");
  const choose = button("Choose images"), camera = button("Camera"), snap = button("Take the photo"), stop = button("Close");
  const input = Object.assign(make("input"), { type: "file", accept: "image/*", multiple: true, hidden: true });
  const video = Object.assign(make("video"), { hidden: true, muted: true, playsInline: true });
  zone.setAttribute("role", "group");
  zone.setAttribute("aria-label", "Images to upload");
  video.setAttribute("aria-label", "What the camera sees");
  state.setAttribute("role", "status");
  camera.hidden = !navigator.mediaDevices?.getUserMedia;  // browsers allow it only on https and on this machine
  snap.hidden = stop.hidden = true;
  row.append(choose, make("span", "or drop them here"), camera, snap, stop);
  zone.append(row, video, state, input);
  el.append(zone);

  let waiting = null, queue = Promise.resolve(), shots = 0, stream = null;
  const onAnswer = message => {
    if (message.kind !== "got" || waiting?.id !== message.id) return;  // another view of this widget asked
    const { resolve } = waiting;
    waiting = null;
    resolve(message.more);
  };
  model.on("msg:custom", onAnswer);
  const ask = (content, buffers) => new Promise(resolve => {
    const late = setTimeout(() => {  // a busy kernel answers sooner or later; a restarted one doesn't know this widget
      state.textContent = "No answer from Python yet. If it isn't busy, it was restarted, so run the cell again.";
    }, model.get("patience") * 1000);
    waiting = { id: content.id, resolve: more => { clearTimeout(late); resolve(more); } };
    model.send(content, undefined, buffers);
  });

  async function send(file) {
    const about = { id: Math.random().toString(36).slice(2), name: file.name || "image", size: file.size };
    if (file.size > model.get("max_bytes")) return ask({ kind: "refused", ...about });
    const step = model.get("piece");
    for (let at = 0; at === 0 || at < file.size; at += step) {
      let piece;
      try {
        piece = await file.slice(at, at + step).arrayBuffer();
      } catch {  // a folder, or a file that is gone
        return ask({ kind: "unreadable", ...about });
      }
      if (file.size > step) state.textContent = `Sending ${about.name}: ${mb(at)} of ${mb(file.size)} MB`;
      if (!await ask({ kind: "piece", at, ...about }, [new DataView(piece)])) return;
    }
  }
  function take(files) {
    for (const file of [...files]) queue = queue.then(() => send(file)).catch(e => { state.textContent = String(e); });
    queue = queue.then(() => { state.textContent = ""; });
  }

  choose.addEventListener("click", () => { input.value = ""; input.click(); });
  input.addEventListener("change", () => take(input.files));
  for (const [name, over] of [["dragenter", true], ["dragover", true], ["dragleave", false], ["drop", false]])
    zone.addEventListener(name, event => {
      event.preventDefault();
      event.stopPropagation();
      zone.classList.toggle("ck-over", over);
      if (name !== "drop") return;
      if (event.dataTransfer.files.length) take(event.dataTransfer.files);
      else state.textContent = "This is not a file. Save the image to your disk first, then drop it from there.";
    });

  const close = () => {
    stream?.getTracks().forEach(track => track.stop());
    stream = null;
    video.hidden = snap.hidden = stop.hidden = true;
    camera.hidden = false;
  };
  camera.addEventListener("click", async () => {
    if (camera.disabled) return;
    camera.disabled = true;  // a second click would open a second stream
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
      video.srcObject = stream;
      await video.play();
      state.textContent = "";
      video.hidden = snap.hidden = stop.hidden = false;
      camera.hidden = true;
      snap.focus();
    } catch (e) {
      state.textContent = `The camera cannot be used (${e.name}). Allow it in the browser, or choose a file.`;
    } finally {
      camera.disabled = false;
      if (!zone.isConnected) close();  // the page was left while the browser asked
    }
  });
  snap.addEventListener("click", () => {
    const canvas = Object.assign(document.createElement("canvas"), { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob(blob => take([new File([blob], `camera ${++shots}.jpg`)]), "image/jpeg", 0.92);
    close();
    camera.focus();
  });
  stop.addEventListener("click", () => { close(); camera.focus(); });
  return () => { close(); model.off("msg:custom", onAnswer); };
}
export default { render };
