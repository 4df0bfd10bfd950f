/** Pictures that are dropped or pasted anywhere on the page. */

const NONE = "That holds no picture file. Save the picture first, then choose or drop the file.";

/**
 * @param {Element} target lights up while something is held over the page.
 * @param {(file: File, name: string, note: string) => void} onFile
 * @param {(message: string) => void} onNothing what came is no file.
 */
export function watchGifts(target, onFile, onNothing) {
  // Everywhere: a file that is dropped beside the target would replace the page.
  addEventListener("dragover", (event) => {
    event.preventDefault();
    target.classList.add("over");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) target.classList.remove("over");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    target.classList.remove("over");
    give(event.dataTransfer?.files);
  });
  addEventListener("paste", (event) => give(event.clipboardData?.files));

  function give(files) {
    if (!files?.length) {
      onNothing(NONE);
      return;
    }
    const note = files.length > 1 ? `Only the first of ${files.length} files is taken.` : "";
    onFile(files[0], files[0].name || "pasted picture", note);
  }
}
